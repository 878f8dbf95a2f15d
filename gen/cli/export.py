"""Export a DiT to a folder that diffusers loads.

gen export runs/dit --to diffusers --output exported; the README in the folder says what is guaranteed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the folder of a run, or of one checkpoint")
    parser.add_argument("--to", required=True, choices=("diffusers",), help="whose folder to write")
    parser.add_argument("--weights", help="the label of an average, or raw (default: the first average)")
    parser.add_argument(
        "--patched",
        action="store_true",
        help="also write a model of freq_shift 0, which diffusers cannot be until two lines of the README have run",
    )
    parser.add_argument("--output", type=Path, required=True, help="a new folder")


def run(args: argparse.Namespace) -> int:
    from gen.models.interop.diffusers_export import export

    folder = export(args.run, args.output, weights=args.weights, patched=args.patched)
    print(f"{folder}: DiTTransformer2DModel.from_pretrained({str(folder)!r}, subfolder='transformer')")
    return 0

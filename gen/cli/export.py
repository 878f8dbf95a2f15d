"""Export a DiT to a folder that diffusers loads.

gen export runs/dit --to diffusers --out exported; the README in the folder says what is guaranteed.
"""

from __future__ import annotations

import argparse

from gen.cli.lib.options import add_option

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "run")
    parser.add_argument("--to", required=True, choices=("diffusers",), help="whose folder to write")
    add_option(parser, "weights")
    parser.add_argument("--patched", action="store_true", help="also write a freq_shift 0 model, see the README")
    add_option(parser, "out", help="a new folder", required=True)


def run(args: argparse.Namespace) -> int:
    from gen.models.interop.diffusers_export import export

    folder = export(args.run, args.out, weights=args.weights, patched=args.patched)
    print(f"{folder}: DiTTransformer2DModel.from_pretrained({str(folder)!r}, subfolder='transformer')")
    return 0

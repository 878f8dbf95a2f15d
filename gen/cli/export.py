"""Export a model: a DiT to a folder that diffusers loads, any published kind to a file of its origin's format.

gen export runs/dit --to diffusers --out exported; the README in the folder says what is guaranteed.
gen export runs/mine --to lightning_dit --out mine.pt; gen import --from lightning_dit reads it back to the bit.
gen export runs/student --to lora --out student-lora: adapters beside a pipeline's network, for pipe.load_lora_weights
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from gen.cli.lib.options import add_option
from gen.config.errors import UserError
from gen.config.reading import read_json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "run")
    parser.add_argument(
        "--to", required=True, help="diffusers, lora, or an origin: a name of gen list models.interop.public"
    )
    add_option(parser, "weights")
    vae = "to diffusers: folder of the AutoencoderKL whose latents are sampled; DiTPipeline then loads all"
    parser.add_argument("--autoencoder", type=Path, help=vae)
    parser.add_argument(
        "--patched", action="store_true", help="to diffusers: write a freq_shift 0 model too, see README"
    )
    add_option(
        parser, "out", help="a new folder; for an origin's format a new file, .pt or .safetensors", required=True
    )


def run(args: argparse.Namespace) -> int:
    if args.to == "lora":
        from gen.models.interop.pipelines.students import save_adapters

        if args.patched or args.autoencoder is not None:
            raise UserError("--patched and --autoencoder are for --to diffusers, not for lora")
        print(f"{save_adapters(args.run, None, args.out, args.weights)}: pipe.load_lora_weights({str(args.out)!r})")
        return 0
    if args.to != "diffusers":
        from gen.models.interop.published_export import export_published

        if args.patched or args.autoencoder is not None:
            raise UserError(f"--patched and --autoencoder are for --to diffusers, not for {args.to}")
        spec = export_published(args.run, args.out, args.to, weights=args.weights)
        print(f"{args.out}: gen import {args.out} --from '{json.dumps(spec)}'")
        return 0
    from gen.models.interop.diffusers_export import export

    folder = export(args.run, args.out, weights=args.weights, patched=args.patched, autoencoder=args.autoencoder)
    if (folder / "config.json").is_file():
        print(f"{folder}: {read_json(folder / 'config.json')['_class_name']}.from_pretrained({str(folder)!r})")
        return 0
    alone = f"DiTTransformer2DModel.from_pretrained({str(folder)!r}, subfolder='transformer')"
    print(f"{folder}: {alone if args.autoencoder is None else f'DiTPipeline.from_pretrained({str(folder)!r})'}")
    return 0

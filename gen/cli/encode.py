"""Encode pictures to the latents of an autoencoder, kept in shards that the data set `latents` trains on.

gen encode photos/ --size 256 --autoencoder sd-vae-ft-mse --out latents
gen train own --data latents --data.path latents --data.standardise channel

Mean and log variance of each latent are kept, and a latent is drawn anew each time that it is trained on. Shards that
are there are kept, so the command can be stopped and run again; --part 1/4 ... 4/4 share the work, and so do the
processes of torchrun --nproc-per-node 4 -m gen encode .... The files are the same in each case.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gen.cli.lib.options import add_option, parse_part, parse_spec, read_as, read_spec, set_threads
from gen.cli.sample import own_device
from gen.config.errors import UserError

__all__ = ["add_arguments", "data_of", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", help="a folder, zip, tar or table of pictures, an .npz, or a JSON spec of gen list data"
    )
    size = "of the pictures: 256, or 256x384 for height and width (default: the size that all have)"
    parser.add_argument("--size", help=size)
    about = "a run, a folder in diffusers' layout, or a JSON spec"
    parser.add_argument("--autoencoder", required=True, type=read_spec, help=about)
    add_option(parser, "out", help="the folder of the latents", required=True)
    parser.add_argument(
        "--split", choices=("all", "train", "test"), help="rows to encode (default: all)", default="all"
    )
    parser.add_argument("--flip", action="store_true", help="encode the mirrored pictures too")
    about = "keep an encoder's features too: a JSON spec of `gen list models.encoders`"
    parser.add_argument("--features", type=read_spec, help=about)
    about = "keep embeddings of the captions too: the folder of a CLIP or T5 of transformers, or a JSON spec"
    parser.add_argument("--text", type=read_spec, help=about)
    kinds = ("float16", "bfloat16", "float32")
    parser.add_argument("--dtype", choices=kinds, default="float16", help="of what is kept (default: float16)")
    layouts = ("gen", "dit", "edm2", "lightningdit", "mar", "repa")
    parser.add_argument("--layout", choices=layouts, default="gen", help="of the files (default: gen)")
    parser.add_argument("--shard", type=read_as(int, "[1, inf)"), default=4096, help="rows of a shard (default: 4096)")
    parser.add_argument("--part", default="1/1", help="k/n: write part k of n of the shards (default: 1/1)")
    help_batch = "pictures at a time, always the same ones: part of what the bits depend on"
    add_option(parser, "batch_size", 32, help_batch)
    parser.add_argument("--workers", type=read_as(int, "[0, 1024]"), default=0, help="processes that read pictures")
    add_option(parser, "device", "cpu")
    add_option(parser, "threads")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> int:
    from gen.config.devices import check_device
    from gen.data.lib.autoencoders import build_autoencoder
    from gen.data.lib.encoding import Encoding, encode
    from gen.data.lib.shards import ShardPlan
    from gen.training.distributed import is_main

    set_threads(args.threads)
    device = own_device(args.device)
    check_device(device)
    how = Encoding(
        build_autoencoder(args.autoencoder),
        args.features,
        _text_encoder(args.text),
        args.split,
        args.flip,
        args.dtype,
        args.layout,
        args.batch_size,
        args.workers,
        device,
    )
    plan = ShardPlan(args.shard, parse_part(args.part), args.quiet or not is_main())
    missing = encode(data_of(args.data, args.size), args.out, how, plan)
    if is_main():
        print(f"{args.out}: {f'{missing} shards are still missing, of other parts' if missing else 'done'}")
    return 0


def _text_encoder(text: Any) -> Any:
    """Return the spec of a text encoder; a folder is one of transformers or of diffusers."""
    from gen.data.lib.prompts import encoder_spec

    if isinstance(text, str):
        if not Path(text).is_dir():
            raise UserError(
                f"--text {text} is no folder; allowed: that of a CLIP or T5 of transformers, or a JSON spec"
            )
        return encoder_spec(text)
    return text


def data_of(text: str, size: str | None) -> Any:
    """Return the data; files of pictures are read in colour, and brought to a size.

    Args:
        text: as of the command's argument.
        size: of the pictures; None for their own.

    Raises:
        UserError: for a size of what are no files of pictures.
    """
    from gen.config.spec import build, owner_of
    from gen.data import spec_at

    spec = parse_spec(text)
    spec = (spec_at(text) or text) if isinstance(spec, str) else spec
    fields = owner_of(spec, "data")[0].__dataclass_fields__
    if size is not None and "size" not in fields:
        raise UserError(f"--size is for files of pictures, and {text!r} are none")
    given: Any = {"name": spec} if isinstance(spec, str) else dict(spec)
    given |= {} if size is None else {"size": size}
    return build("data", {"channels": 3, **given} if "channels" in fields else given)

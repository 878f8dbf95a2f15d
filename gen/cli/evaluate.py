"""Measure the quality and the speed of a trained run against real images.

gen evaluate runs/digits --steps 8 --solver euler -n 1000; the record is written to runs/digits/eval/.
"""

from __future__ import annotations

import argparse
import json

from gen.cli.lib.options import add_options, parse_spec
from gen.cli.sample import add_sampler_options, loaded, sampler_options
from gen.config.reading import parse_json
from gen.config.spec import Json

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, run=None, n=1000)
    parser.add_argument(
        "--data", help="the real images: a name of `gen list data`, or a JSON spec (default: the run's own)"
    )
    parser.add_argument("--split", default="test", help="train, test, or all of the data (default: test)")
    parser.add_argument(
        "--extractor", help="of `gen list eval.features` (default: digits_cnn for images of 8 x 8, else pixels)"
    )
    parser.add_argument(
        "--metrics",
        help='names of `gen list eval.metrics` or of your own, "fid,my_package.my_module:Mine", or a JSON list of '
        "specs; the first ranks a leaderboard (default: all that can be computed)",
    )
    parser.add_argument("--label", help="what the leaderboard calls the row (default: the run's name)")
    parser.add_argument("--json", action="store_true", help="print the whole record")
    add_sampler_options(parser)
    parser.add_argument("--autoencoder", help="to decode latents: a folder in diffusers' layout, or a JSON spec")


def run(args: argparse.Namespace) -> int:
    from gen import evaluate
    from gen.eval.record import to_json
    from gen.training.distributed import is_main

    pipeline = loaded(args)
    record = evaluate(
        pipeline,
        metrics=_metrics(args.metrics),
        data=parse_spec(args.data),
        split=args.split,
        n=args.n,
        seed=args.seed,
        extractor=parse_spec(args.extractor),
        label=args.label,
        out=args.run / "eval",
        batch_size=args.batch_size,
        autoencoder=parse_spec(args.autoencoder),
        quiet=False,
        **sampler_options(args, pipeline),
    )
    if not is_main():
        return 0
    if args.json:
        print(json.dumps(to_json(record), indent=2))
        return 0
    numbers = "; ".join(f"{m.column.heading} {m.column.text(m.estimate)}" for m in record.metrics)
    print(f"{record.label}: {record.nfe:g} evaluations per sample; {numbers}")
    return 0


def _metrics(text: str | None) -> list[str | Json] | None:
    """Return the names or specs that an option holds."""
    if text is None or not text.lstrip().startswith("["):
        return None if text is None else [name.strip() for name in text.split(",")]
    return list(parse_json(text, f"--metrics {text!r}"))

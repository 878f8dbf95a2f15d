"""Measure the quality and the speed of a trained run against real images.

gen evaluate runs/digits --steps 8 --solver euler --data digits -n 1000; the record is written to runs/digits/eval/.
"""

from __future__ import annotations

import argparse
import json

from gen.cli.lib.options import add_options, parse_spec
from gen.cli.sample import add_sampler_options, loaded, sampler_options

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, run=None, n=1000)
    parser.add_argument("--data", default="digits", help="the real images: a name of `gen list data`, or a JSON spec")
    parser.add_argument("--split", default="test", help="train or test (default: test)")
    parser.add_argument(
        "--extractor", default="digits_cnn", help="a name of `gen list eval.features` (default: digits_cnn)"
    )
    parser.add_argument("--label", help="what the leaderboard calls the row (default: the run's name)")
    parser.add_argument("--json", action="store_true", help="print the whole record")
    add_sampler_options(parser)


def run(args: argparse.Namespace) -> int:
    from gen import evaluate

    pipeline = loaded(args)
    how = sampler_options(args)
    record = evaluate(
        pipeline,
        data=parse_spec(args.data),
        split=args.split,
        n=args.n,
        seed=args.seed,
        extractor=parse_spec(args.extractor),
        label=args.label,
        out=args.run / "eval",
        batch_size=args.batch_size,
        **how,
    )
    if args.json:
        print(json.dumps(record, indent=2))
        return 0
    metrics = {key: f"{m['value']:.4g} +- {m['se']:.2g}" for key, m in record["metrics"].items()}
    told = "; ".join(f"{key} {value}" for key, value in metrics.items())
    print(f"{record['label']}: {record['nfe']:g} evaluations per sample; {told}")
    return 0

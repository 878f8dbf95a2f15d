"""Add the adapters of several runs into the weights of the model that they belong to.

gen merge runs/teacher --adapters runs/style=0.8 runs/subject --out runs/merged
gen merge runs/teacher --adapters runs/a runs/b --ties 0.2 --out runs/merged
"""

from __future__ import annotations

import argparse

from gen.cli.lib.options import add_option
from gen.config.errors import UserError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "run", help="the folder of the model that the adapters belong to")
    given = "folders of runs with adapters, each with =FACTOR (default: 1)"
    parser.add_argument("--adapters", nargs="+", required=True, metavar="RUN", help=given)
    kept = "merge by TIES, which keeps this share of each run's largest changes (default: add them up)"
    parser.add_argument("--ties", type=float, help=kept)
    add_option(parser, "out", help="the folder to write", required=True)


def run(args: argparse.Namespace) -> int:
    from gen.training.merging import merge_adapters

    pairs = [_pair(text) for text in args.adapters]
    folder = merge_adapters(args.run, pairs, args.out, ties=args.ties)
    print(f"{folder}: {args.run} with the adapters of {', '.join(f'{name} ({factor:g})' for name, factor in pairs)}")
    return 0


def _pair(text: str) -> tuple[str, float]:
    """Return a run's folder and its factor."""
    folder, equals, factor = text.rpartition("=")
    if not equals:
        return text, 1.0
    try:
        return folder, float(factor)
    except ValueError:
        raise UserError(f"--adapters {text}: {factor!r} is no number; allowed: RUN or RUN=FACTOR") from None

"""Rank evaluations on one page, each only against what it can be compared with.

gen leaderboard runs/* --out leaderboard.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gen.cli.lib.options import add_option

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", type=Path, help="run folders, records (.json), or a list of them (.toml)")
    add_option(parser, "out", Path("leaderboard.html"), "the page; .csv and .md are written beside it")
    parser.add_argument("--rank-by", help="the metric that ranks the rows, fid or recall (default: the first measured)")


def run(args: argparse.Namespace) -> int:
    from gen.eval.leaderboard import leaderboard, table
    from gen.eval.record import collect

    records = collect(args.sources)
    page = leaderboard(records, out=args.out, rank_by=args.rank_by)
    print(table(records, args.rank_by))
    print(page)
    return 0

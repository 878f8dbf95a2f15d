"""Rank evaluations on one page, each only against what it can be compared with.

gen leaderboard runs/* --out leaderboard.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", type=Path, help="run folders, records (.json), or a list of them (.toml)")
    parser.add_argument("--out", type=Path, default=Path("leaderboard.html"), help="also writes .csv and .md beside it")


def run(args: argparse.Namespace) -> int:
    from gen.eval.leaderboard import leaderboard, table

    page = leaderboard(args.sources, out=args.out)
    print(table(args.sources))
    print(page)
    return 0

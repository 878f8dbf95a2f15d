"""Rank evaluations on one page, each only against what it can be compared with.

gen leaderboard runs samples/of-others published.toml votes.jsonl --out leaderboard.html

Sources are folders of runs and of samples that were evaluated (their eval/*.json), folders that hold these, records,
votes of `gen arena`, and lists: TOML files of tables [[entry]] with a path, and perhaps a label, and of tables
[[published]] with label, source, values = {fid = 2.27}, and perhaps other_values, protocol, other_protocol, table (the
key of one), about, nfe, params.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gen.cli.lib.options import add_option

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources", nargs="+", type=Path, help="folders, records (.json), votes (.jsonl) and lists (.toml)"
    )
    add_option(parser, "out", Path("leaderboard.html"), "the page; .csv and .md are written beside it")
    parser.add_argument("--rank-by", help="the metric that ranks the rows, fid or recall (default: the first measured)")


def run(args: argparse.Namespace) -> int:
    from gen.eval.leaderboard import leaderboard, table
    from gen.eval.sources import collect_all

    entries = collect_all(args.sources)
    page = leaderboard(entries, out=args.out, rank_by=args.rank_by)
    print(table(entries, args.rank_by))
    print(page)
    return 0

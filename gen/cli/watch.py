"""Draw runs while they train: losses, speed, time to go and samples, on a page that refreshes itself.

gen watch runs/digits runs/other --out watch.html, and open the page in a browser

Runs that train, and those that have ended; a folder of runs stands for all of them. The page is written anew until all
have ended, or until Ctrl-C.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from gen.cli.lib.options import add_option, read_as
from gen.config.errors import UserError
from gen.config.writing import write_text

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or folders that hold runs")
    parser.add_argument(
        "--every", type=read_as(float, "[0.1, 86400]"), default=5.0, help="seconds between two looks (default: 5)"
    )
    parser.add_argument("--once", action="store_true", help="write the page as it is now, and end")
    add_option(parser, "out", Path("watch.html"), "the page")


def run(args: argparse.Namespace) -> int:
    from gen.eval.pages.watch import find_runs, watch_page

    if args.out.is_dir():
        raise UserError(f"--out {args.out} is a folder, expected a file")
    said = False
    while True:
        runs = find_runs(args.runs)  # anew: what is read is kept
        going_on = not args.once and any(run.going_on for run in runs)
        write_text(args.out, watch_page(runs, args.every if going_on else 0.0))
        if not said:
            print(args.out, flush=True)
        said = True
        if not going_on:
            return 0
        time.sleep(args.every)

"""Find a plan while a run is trained: its batches, or its learning rate, by controllers outside the trainer.

gen tune digits --by adadagrad --by.every 200 --by.eta 0.5 --out runs/grown --batch-plan.rate sqrt
gen train runs/grown/run.json --out runs/again: the same weights by the plan that was found, without the controller
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gen.cli.lib.options import add_option, read_spec, set_threads
from gen.cli.train import run_of, with_size

if TYPE_CHECKING:
    from gen.training.run import Run

__all__ = ["add_arguments", "run", "settings"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a name of `gen list recipes`, a run.json, or the folder of a run")
    parser.add_argument("--by", type=read_spec, required=True, help="a name or spec of `gen list training.tuning`")
    add_option(parser, "out", help="the folder of what is trained (default: runs/ and the recipe's name)")
    add_option(parser, "threads")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def settings(args: argparse.Namespace) -> Run:
    """Return the run before any change."""
    run = run_of(args)
    args.overrides = with_size(args.overrides, run.data)
    return run


def run(args: argparse.Namespace) -> int:
    from gen.config.spec import build, spec_of

    set_threads(args.threads)
    folder = args.out or Path("runs") / Path(args.recipe).stem
    planned = build("training.tuning", args.by).tune(args.settings, folder, args.quiet)
    for name in ("batch_plan", "schedule"):
        print(f"{folder}: {name} {spec_of(getattr(planned, name))}")
    return 0

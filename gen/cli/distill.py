"""Distil a trained run into one that needs fewer steps.

gen distill reflow --teacher runs/digits --out runs/student --objective.pairs 8192 --steps 700
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gen.cli.lib.options import set_threads
from gen.cli.train import add_run_options, typed

if TYPE_CHECKING:
    from gen.training.run import Run

__all__ = ["add_arguments", "run", "settings"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", help="a name of `gen list distill`")
    parser.add_argument("--teacher", type=Path, required=True, help="the folder of the run to learn from")
    add_run_options(parser)


def settings(args: argparse.Namespace) -> Run:
    """Return the teacher's run under the method's objective: what a student's run starts from.

    Args:
        args: the parsed arguments.
    """
    from dataclasses import replace

    from gen.config.spec import build, folder_of

    if ":" not in args.method:
        folder_of(args.method, "distillers")  # a mistyped name is refused before torch is imported
    from gen.training.distillation import teacher_run

    return replace(teacher_run(args.teacher), objective=build("distillers", args.method))


def run(args: argparse.Namespace) -> int:
    from gen import distill

    set_threads(args.threads)
    folder = args.out or args.teacher.with_name(f"{args.teacher.name}-{args.method}")
    done = distill(
        args.method, args.teacher, folder, changes=args.overrides, resume=args.resume, command=typed(), quiet=args.quiet
    )
    loss = "" if done.val_loss is None else f", validation loss {done.val_loss:.4f}"
    print(f"{done.folder}: step {done.step}{loss}")
    return 0

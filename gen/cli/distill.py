"""Distil a trained run into one that needs fewer steps.

gen distill reflow --teacher runs/digits --out runs/student --objective.pairs 8192 --steps 700
gen distill dmd2 --teacher sd3 --prompts prompts.txt --lora.rank 16 --steps 1000 --out runs/student where sd3 is a
folder of diffusers: the student's adapters are trained, sampled by gen sample and written by gen export --to lora
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.cli.lib.diffusers import add_teacher_options, is_pipeline
from gen.cli.lib.options import set_threads
from gen.cli.train import add_run_options, dry_run, training_run, typed
from gen.config.errors import UserError

if TYPE_CHECKING:
    from gen.training.run import Run

__all__ = ["about", "add_arguments", "run", "settings"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", help="a name of `gen list distill`")
    parser.add_argument(
        "--teacher", type=Path, required=True, help="the folder of the run to learn from, or of a pipeline"
    )
    add_run_options(parser)
    add_teacher_options(parser)


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

    if is_pipeline(args, "teacher"):
        run = training_run(args, args.teacher)
    elif args.prompts is not None:
        raise UserError(f"--prompts is for pipelines of diffusers: {args.teacher} has the captions of its data")
    else:
        run = teacher_run(args.teacher)
    return replace(run, objective=build("distillers", args.method))


def about(args: argparse.Namespace) -> str:
    """Return what a method says of itself.

    Args:
        args: the parsed arguments.
    """
    return f"{args.method}: {inspect.getdoc(type(args.settings.objective))}"


def run(args: argparse.Namespace) -> int:
    from gen import distill

    set_threads(args.threads)
    folder = args.out or args.teacher.with_name(f"{args.teacher.name}-{args.method}")
    if (args.dry_run or args.json) and hasattr(args, "loaded"):
        raise UserError("--dry-run counts networks that are built from a spec, and a pipeline's is not: leave it out")
    if args.dry_run or args.json:
        student = _student(args, folder) if args.dry_run else args.settings
        dry_run(args, student, args.method, folder)
        return 0
    teacher = getattr(args, "loaded", args.teacher)
    done = distill(
        args.method, teacher, folder, changes=args.overrides, resume=args.resume, command=typed(), quiet=args.quiet
    )
    loss = "" if done.val_loss is None else f", validation loss {done.val_loss:.4f}"
    print(f"{done.folder}: step {done.step}{loss}")
    return 0


def _student(args: argparse.Namespace, folder: Path) -> Run:
    """Return the student's run as `gen distill` derives it, but for pairs, which nothing is generated for."""
    from dataclasses import replace

    from gen.config.spec import override
    from gen.training.distillation import teacher_run

    method: Any = args.settings.objective
    if hasattr(method, "pairs"):
        return replace(args.settings, teacher=None)
    rest = {key: value for key, value in args.overrides.items() if not key.startswith("objective.")}
    return override(method.student(teacher_run(args.teacher), args.teacher, folder), rest)

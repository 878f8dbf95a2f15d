"""Train a model: a recipe, or the run.json of an earlier run.

gen train digits --out runs/digits --optim.lr 2e-4 --steps 3000
gen train dit_xl_2 --dry-run: what a published recipe would take (docs/recipes.md)
gen train own --data ./photos --size 32: pictures of your own, as docs/data.md says; --size is short for --data.size
gen train sd3 --data photos.csv --lora.rank 16 --steps 500: adapters of a pipeline of diffusers, on captioned pictures
"""

from __future__ import annotations

import argparse
import inspect
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.cli.lib.diffusers import add_teacher_options, is_pipeline, loaded_teacher
from gen.cli.lib.options import add_option, parse_spec, set_threads
from gen.config.errors import UserError

if TYPE_CHECKING:
    from gen.config.spec import Json
    from gen.data import DataSource
    from gen.training.run import Run

RECIPES = ("training.recipes", "training.published")

__all__ = [
    "RECIPES",
    "about",
    "add_arguments",
    "add_run_options",
    "dry_run",
    "labels_note",
    "run",
    "run_of",
    "settings",
    "typed",
    "warmup_note",
    "with_size",
]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    about = "a name of `gen list recipes`, a run.json, or the folder of a run, a checkpoint or a pipeline of diffusers"
    parser.add_argument("recipe", help=about)
    add_run_options(parser)
    add_teacher_options(parser)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options that train and distill have in common.

    Args:
        parser: the verb's.
    """
    add_option(parser, "out", help="the run's folder (default: runs/ and the recipe's name)")
    help_resume = "auto: from the newest checkpoint; never: a new folder only; or a checkpoint (default: auto)"
    parser.add_argument("--resume", default="auto", help=help_resume)
    add_option(parser, "threads")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    about = "train nothing: count parameters, operations and memory, with no data, and print the command for 8 GPUs"
    parser.add_argument("--dry-run", action="store_true", help=about)
    parser.add_argument("--json", action="store_true", help="print the dry run as JSON")


def settings(args: argparse.Namespace) -> Run:
    """Return the run before any change."""
    run = training_run(args, Path(args.recipe)) if is_pipeline(args, "recipe") else run_of(args)
    args.overrides = with_size(args.overrides, run.data)
    return run


def training_run(args: argparse.Namespace, folder: Path) -> Run:
    """Return the run that trains adapters of a pipeline of diffusers, which is kept as args.loaded.

    Args:
        args: the verb's, parsed.
        folder: of the pipeline.
    """
    import torch

    from gen.cli.sample import own_device

    args.loaded = loaded_teacher(args, folder, own_device("cuda") if torch.cuda.is_available() else "cpu")
    return args.loaded.training_run()


def about(args: argparse.Namespace) -> str:
    """Return what a recipe says of itself.

    Args:
        args: the parsed arguments.
    """
    recipe = _recipe(args.recipe)
    return "" if recipe is None else f"{args.recipe}: {inspect.getdoc(recipe)}"


def _recipe(name: str) -> Callable[[], Run] | None:
    """Return a recipe, or None for the path of a file or folder."""
    from gen.config.spec import find

    given = Path(name)
    return None if given.is_dir() or given.suffix == ".json" else find(name, *RECIPES)


def run_of(args: argparse.Namespace) -> Run:
    """Return the run of a recipe, a file or a folder.

    Args:
        args: the parsed arguments, with `recipe`.
    """
    if (recipe := _recipe(args.recipe)) is not None:
        return recipe()
    given = Path(args.recipe)
    from gen.config.checkpoints import manifest_of  # behind the name, which is refused without torch
    from gen.training.log import read_run_file
    from gen.training.run import run_from

    if given.is_dir() and not (given / "run.json").exists():  # an imported model, or one checkpoint
        return run_from(manifest_of(given).get("run"), given)
    found = read_run_file(given / "run.json" if given.is_dir() else given)
    source = given if given.is_dir() else None  # a file that is given is the user's own
    return run_from(found.get("run", found) if isinstance(found, dict) else found, source)


def with_size(changes: Json, data: DataSource | None) -> Json:
    """Return the changes of a run with --size as what it is short for: the size to which data are brought.

    Args:
        changes: by dotted key.
        data: of the run before the changes.

    Raises:
        UserError: for --size where the data are no files of pictures.
    """
    from gen.config.spec import name_of, owner_of

    if "size" in changes and (data is not None or "data" in changes):
        kind: Any = owner_of(parse_spec(changes["data"]), "data")[0] if "data" in changes else type(data)
        if "size" not in kind.__dataclass_fields__:
            raise UserError(
                f"--size brings files of pictures to a size; the data {name_of(kind)} have the one they were stored at:"
                " leave it out"
            )
    return {"data.size" if key == "size" else key: value for key, value in changes.items()}


def run(args: argparse.Namespace) -> int:
    from gen.training.distributed import is_main
    from gen.training.trainer import train

    set_threads(args.threads)
    folder = args.out or Path("runs") / Path(args.recipe).stem
    if hasattr(args, "loaded"):
        args.settings = _on_prompts(args)
    if dry_run(args, args.settings, args.recipe, folder):
        return 0
    if not args.quiet and is_main():
        run = args.settings
        for note in (*getattr(run.model, "notes", ()), *warmup_note(run), *labels_note(run)):
            print(f"note: {note}", file=sys.stderr)
    done = train(args.settings, folder, resume=args.resume, command=typed(), quiet=args.quiet)
    if is_main():
        loss = "" if done.val_loss is None else f", validation loss {done.val_loss:.4f}"
        print(f"{done.folder}: step {done.step}{loss}")
        if done.step > args.settings.steps:
            print(f"nothing was trained: it was at step {done.step} before, and steps = {args.settings.steps}")
    return 0


def _on_prompts(args: argparse.Namespace) -> Run:
    """Return the run on a pipeline's network with data as that reads them."""
    from gen.training.pipeline_students import on_prompts

    if args.dry_run:
        raise UserError("--dry-run counts networks that are built from a spec, and a pipeline's is not: leave it out")
    if args.prompts is not None:
        raise UserError("--prompts is for gen distill: gen train takes pictures with captions, --data photos.csv")
    return on_prompts(args.settings)


def dry_run(args: argparse.Namespace, run: Run, name: str, folder: Path) -> bool:
    """Print what a run would take, if that is asked for; return whether it was.

    Args:
        args: the parsed arguments of `add_run_options`.
        run: what would be trained.
        name: of the recipe or method.
        folder: of the run.

    Raises:
        UserError: for --json without --dry-run.
    """
    from gen.cli.lib.dry_run import print_dry_run
    from gen.config.errors import UserError

    if args.dry_run:
        print_dry_run(run, name, args.json, folder)
    elif args.json:
        raise UserError("--json prints a dry run: give --dry-run, too")
    return bool(args.dry_run)


def warmup_note(run: Run) -> list[str]:
    """Return what to say of a warm-up that does not end before the run does.

    Args:
        run: the run.
    """
    warmup = getattr(run.schedule, "warmup", 0)
    if warmup < run.steps:
        return []
    last = run.learning_rate(run.steps - 1)
    return [
        f"--schedule.warmup is {warmup} of {run.steps} steps: the learning rate ends at {last:.3g}, below --optim.lr "
        f"{run.optim.lr:g}; give a smaller one, or more --steps"
    ]


def labels_note(run: Run) -> list[str]:
    """Return what to say of a network with labels that predicts the noise, on a path that has a better prediction.

    Args:
        run: the run.
    """
    from gen.config.spec import name_of
    from gen.diffusion.path import NoisePath

    predicts = name_of(type(run.parameterisation))
    if predicts not in ("eps", "score") or not isinstance(run.path, NoisePath) or not getattr(run.data, "classes", 0):
        return []
    return [
        f"parameterisation {predicts}: a label says alpha / sigma as much of the noise as of the data, so labels are "
        "learned late. Digits on vp: label accuracy 0.13, 0.47, 0.85 after 600, 1600, 2500 steps, by v 0.84 and 0.97 "
        f"after 600 and 1600. The path's own is {run.path.natural['parameterisation']}; else train longer"
    ]


def typed() -> str:
    """Return this command line as it can be typed again."""
    return shlex.join(["gen", *sys.argv[1:]])

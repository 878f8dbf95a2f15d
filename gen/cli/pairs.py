"""Make the pairs of noise and sample that students of a teacher train on; or of data and their noise.

gen pairs --teacher runs/digits --out runs/digits-pairs -n 8192 --solver heun --steps 16
gen distill reflow --teacher runs/digits --objective.store runs/digits-pairs --objective.pairs 8192
gen pairs --teacher sd3 --prompts prompts.txt --out fox-pairs -n 8192 where sd3 is a folder of diffusers
gen distill ect --teacher sd3 --data pairs --data.path fox-pairs --out runs/student

Existing shards are kept, so the command can be stopped and run again; --part 1/4 ... 4/4 share the work, and so do
the processes of torchrun --nproc-per-node 4 -m gen pairs ....

A student takes them from its store if its objective.teacher_sampler says what --solver, --steps, --grid and --guide
said.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from gen.cli.lib.diffusers import add_teacher_options, is_pipeline, loaded_teacher
from gen.cli.lib.options import add_option, add_options, parse_part
from gen.cli.sample import own_device
from gen.config.errors import UserError
from gen.config.reading import read_lines

if TYPE_CHECKING:
    from gen.training.run import Sampler

__all__ = ["add_arguments", "run", "settings"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--teacher", type=Path, required=True, help="the folder of a run, or of a pipeline of diffusers"
    )
    add_option(parser, "out", help="the folder of the pairs", required=True)
    add_option(parser, "n", 16_384, "number of pairs")
    parser.add_argument("--real", action="store_true", help="pair the teacher's training data with their noise")
    add_option(parser, "seed", 1, "noise i is that of sample i of this seed")
    parser.add_argument("--shard", type=int, default=4096, help="pairs in a shard (default: 4096)")
    parser.add_argument("--part", default="1/1", help="k/n: write part k of n of the shards (default: 1/1)")
    add_options(parser, batch_size=None, device="cpu")
    add_teacher_options(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")


def settings(args: argparse.Namespace) -> Sampler:
    """Return how the teacher is sampled, before any change.

    Args:
        args: the parsed arguments.
    """
    from gen.training.run import Sampler

    if is_pipeline(args, "teacher"):
        args.loaded = loaded_teacher(args, args.teacher, own_device(args.device)).pipeline
        return args.loaded.sampler
    return Sampler(steps=16)


def run(args: argparse.Namespace) -> int:
    from gen.data.lib.shards import ShardPlan
    from gen.distillers.lib.pairs import invert_pairs, real_data_of
    from gen.pipeline import load
    from gen.training.distillation import teacher_run
    from gen.training.distributed import is_main
    from gen.training.pair_store import make_pairs

    plan = ShardPlan(args.shard, parse_part(args.part), args.quiet)
    foreign = is_pipeline(args, "teacher")
    teacher = args.loaded if foreign else load(args.teacher, device=own_device(args.device))
    if args.real and foreign:
        raise UserError(
            f"--real pairs a teacher's training data, and {args.teacher}, a pipeline of diffusers, has none"
        )
    if args.real:
        if given := [key for key in ("prompts", "batch_size") if getattr(args, key) is not None]:
            raise UserError(f"--real pairs a teacher's training data: leave out --{given[0].replace('_', '-')}")
        data = real_data_of(teacher_run(args.teacher))
        invert_pairs(teacher, data, args.out, args.settings, args.n, args.seed, plan)
    else:
        prompts = [] if args.prompts is None or foreign else list(read_lines(args.prompts))
        make_pairs(teacher, args.out, args.n, args.settings, args.seed, plan, prompts, args.batch_size)
    if is_main():
        print(f"{args.out}: {len(list(args.out.glob('shard-*')))} shards")
    return 0

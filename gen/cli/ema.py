"""Average a run's weights over another length than it was trained with, from its checkpoints.

gen ema runs/digits --std 0.12 --out runs/digits-0.120
gen sample runs/digits-0.120

The run must have two power averages, --ema '[{"name": "power", "std": 0.05}, {"name": "power", "std": 0.1}]', and must
have kept its checkpoints, --keep 100: 16 of them suffice. std is the length of the average as a share of the run.
"""

from __future__ import annotations

import argparse

from gen.cli.lib.options import add_option

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "run", help="the folder of a run")
    parser.add_argument("--std", type=float, required=True, help="length of the average, 0 to 0.2887 of the run")
    add_option(parser, "out", help="the checkpoint to write", required=True)
    parser.add_argument("--step", type=int, help="as if training had stopped there (default: the newest checkpoint)")


def run(args: argparse.Namespace) -> int:
    from gen.training.posthoc_ema import reconstruct

    done = reconstruct(args.run, args.std, args.out, step=args.step)
    source = f"{done.checkpoints} checkpoints with {done.profiles} averages"
    print(f"{done.folder}: std {done.std:g} at step {done.step} from {source}; weighting off by {done.error:.2%}")
    return 0

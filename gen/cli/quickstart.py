"""Train, distil to one step, sample, rank: the whole of gen on handwritten digits, in under three minutes on two cores.

gen quickstart --out runs/quickstart; nothing is downloaded, and a second call resumes the first.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gen.cli.lib.options import add_option, set_threads

__all__ = ["add_arguments", "quickstart", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_option(parser, "out", Path("runs/quickstart"), "the folder to write")
    add_option(parser, "n", 1000, "samples per row of the leaderboard")
    add_option(parser, "threads")


def run(args: argparse.Namespace) -> int:
    set_threads(args.threads)
    page, text = quickstart(args.out, args.n)
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

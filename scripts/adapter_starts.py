"""Beginnings and methods of adapters at equal steps: a small model learns digits whose black and white are exchanged.

python scripts/adapter_starts.py [--seeds 3] [--steps 100] [--rank 4] [--folder runs/adapters] [--table adapters.json]

Every row begins with the same model; each seed draws other adapters, another order of the data and other noise. The
loss is that of the held-out digits, exchanged, at fixed times and noise; FID that of 500 samples of 20 Euler steps,
exchanged back, against the 360 held-out digits. Beginnings learn at one rate; methods, beside the linear layers of the
blocks and of about as many trained numbers as LoRA of that rank there, at each of three rates.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import platform
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

import gen
from gen.config.spec import Json
from gen.config.writing import write_text
from gen.data.digits import Digits
from gen.data.given import GivenData
from gen.diffusion.noise import training_noise
from gen.eval.reference import Reference
from gen.training.lora import LoRA, adapted
from gen.training.objectives import Batch
from gen.training.optim.adamw import AdamW
from gen.training.recipes.digits import digits
from gen.training.run import Run
from gen.training.schedules import Constant

RATE, RATES = 2e-3, (2e-3, 4e-3, 8e-3)
STARTS = ("default", "gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga")
METHODS = ("lora", "rslora", "dora", "lokr", "miss")
FACTOR = {"lokr": 2}  # of halves: two factors near the square roots have too few numbers here
BLOCKS = ("blocks.*",)  # of methods, one of which takes no rank above a layer's inputs
DRAWS = 8  # of times and noise, of each held-out digit


class Exchanged:
    """Digits whose black and white are exchanged."""

    def __init__(self, split: str) -> None:
        self.items = [
            {**item, "x": -item["x"]} for item in map(Digits().open(split).__getitem__, range(self.size(split)))
        ]
        self.classes, self.fingerprint = 10, f"exchanged {split} digits"

    @staticmethod
    def size(split: str) -> int:
        """Return the number of digits."""
        return len(Digits().open(split))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return self.items[i]


def teacher(folder: Path) -> Path:
    """Train the model that all adapters begin with, unless it is there."""
    quiet = {"sample_every": 0, "validate_every": 0, "save_every": 0}
    run = digits()
    run = replace(run, model=replace(run.model, width=32, depth=3), steps=600, **quiet)
    return gen.train(run, folder, quiet=True).folder


def measured(run: Run, folder: Path, reference: Reference) -> dict[str, float]:
    """Train adapters, or without steps nothing, and return the loss and the FID."""
    pipeline = gen.load(gen.train(run, folder, quiet=True).folder) if run.lora else gen.load(str(run.init))
    held_out = Exchanged("test")
    x, y = (
        torch.stack([item[key] for item in held_out.items]).repeat(DRAWS, *[1] * n) for key, n in (("x", 3), ("y", 0))
    )
    batch = Batch(x, {"y": y}, training_noise(7, 0, range(len(x))))
    with torch.no_grad():
        loss: Any = run.objective.validate({"net": pipeline.denoiser}, batch)  # type: ignore[union-attr]
    samples = 255 - pipeline.sample(500, steps=20, batch_size=500).uint8()
    record = gen.evaluate(samples, against=reference, metrics=["fid"])
    return {
        "loss": float(loss),
        "fid": next(found.estimate.value for found in record.metrics if found.column.key == "fid"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("runs/adapters"))
    parser.add_argument("--table", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, reference = teacher(args.folder / "teacher"), Reference.open("digits", "test", "digits_cnn")
    data = GivenData(Exchanged("train"), test=Exchanged("test"))
    quiet = {"sample_every": 0, "validate_every": 0, "save_every": 0}
    base = replace(digits(), model=gen.load(start).denoiser.net.spec, data=data, init=str(start), steps=args.steps,
                   schedule=Constant(), ema=(), **quiet)  # fmt: skip
    net = base.model.build

    def row(lora: LoRA, rate: float) -> Json:
        """Return the row of adapters at a learning rate, which is also printed."""
        name = "-".join([lora.method, lora.init, str(lora.rank), f"{rate:g}", *(["blocks"] if lora.targets else [])])
        runs = [replace(base, lora=lora, seed=seed, optim=AdamW(lr=rate)) for seed in range(args.seeds)]
        found = [measured(run, args.folder / f"{name}-{run.seed}", reference) for run in runs]
        about = {"method": lora.method, "init": lora.init, "rank": lora.rank, "lr": rate}
        done: Json = {**about, "numbers": trained_numbers(lora, net()), **_over(found)}
        print(json.dumps(done), flush=True)
        return done

    before: Json = {"method": "none", "init": "", "numbers": 0, **_over([measured(base, start, reference)])}
    starts = [before, *(row(LoRA(args.rank, init=init), RATE) for init in STARTS)]
    methods = [row(lora, rate) for lora in as_large(LoRA(args.rank, targets=BLOCKS), net()) for rate in RATES]
    if args.table is not None:
        about = {"date": str(datetime.date.today()), "torch": torch.__version__, "cpu": platform.machine()}
        settings = {"seeds": args.seeds, "steps": args.steps, "rank": args.rank}
        write_text(args.table, json.dumps({**about, **settings, "rows": starts, "methods": methods}, indent=1) + "\n")


def as_large(lora: LoRA, net: nn.Module) -> list[LoRA]:
    """Return adapters of every method, of the rank at which each trains the most nearly as many numbers as some do.

    Args:
        lora: these.
        net: the network.
    """
    wanted, found = trained_numbers(lora, copy.deepcopy(net)), list[LoRA]()
    for method in METHODS:
        some = [replace(lora, method=method, rank=rank, factor=FACTOR.get(method)) for rank in range(1, 4 * lora.rank)]
        found.append(min(some, key=lambda one: abs(trained_numbers(one, copy.deepcopy(net)) - wanted)))
    return found


def trained_numbers(lora: LoRA, net: nn.Module) -> int:
    """Return how many numbers the adapters of a network train.

    Args:
        lora: the adapters.
        net: the network, which gets them.
    """
    return sum(p.numel() for p in adapted(net, lora).parameters() if p.requires_grad)


def _over(found: list[dict[str, float]]) -> Json:
    """Return each number's values over the seeds, and their mean."""
    return {
        key: {"value": statistics.fmean(one[key] for one in found), "seeds": [one[key] for one in found]}
        for key in found[0]
    }


if __name__ == "__main__":
    main()

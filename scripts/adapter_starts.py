"""Beginnings of adapters at equal steps: a small model of digits learns digits whose black and white are exchanged.

python scripts/adapter_starts.py [--seeds 2] [--steps 100] [--rank 4] [--folder runs/adapters] [--table adapters.json]

Every row begins with the same model; each seed draws other adapters, another order of the data and other noise. The
loss is that of the held-out digits, exchanged, at fixed times and noise; FID that of 500 samples of 20 Euler steps,
exchanged back, against the 360 held-out digits.
"""

from __future__ import annotations

import argparse
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

import gen
from gen.config.spec import Json
from gen.config.writing import write_text
from gen.data.digits import Digits
from gen.data.given import GivenData
from gen.diffusion.noise import training_noise
from gen.eval.reference import Reference
from gen.training.lora import LoRA
from gen.training.objectives import Batch
from gen.training.optim.adamw import AdamW
from gen.training.recipes.digits import digits
from gen.training.run import Run
from gen.training.schedules import Constant

STARTS = ("default", "gaussian", "orthogonal", "pissa", "olora", "eva", "lora_ga")
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
    parser.add_argument("--seeds", type=int, default=2)
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
                   optim=AdamW(lr=2e-3), schedule=Constant(), ema=(), **quiet)  # fmt: skip
    ways = [LoRA(args.rank, init=init) for init in STARTS]
    rows: list[Json] = [{"method": "none", "init": "", "numbers": 0, **_over([measured(base, start, reference)])}]
    for lora in ways:
        name = f"{lora.method}-{lora.init}"
        found = []
        for seed in range(args.seeds):
            found.append(measured(replace(base, lora=lora, seed=seed), args.folder / f"{name}-{seed}", reference))
        net = base.model.build()
        rows.append({"method": lora.method, "init": lora.init, "numbers": _numbers(lora, net), **_over(found)})
        print(json.dumps(rows[-1]), flush=True)
    if args.table is not None:
        about = {"date": str(datetime.date.today()), "torch": torch.__version__, "cpu": platform.machine()}
        settings = {"seeds": args.seeds, "steps": args.steps, "rank": args.rank}
        write_text(args.table, json.dumps({**about, **settings, "rows": rows}, indent=1) + "\n")


def _numbers(lora: LoRA, net: torch.nn.Module) -> int:
    """Return how many numbers the adapters train."""
    from gen.training.lora import adapted

    return sum(p.numel() for p in adapted(net, lora).parameters() if p.requires_grad)


def _over(found: list[dict[str, float]]) -> Json:
    """Return each number's values over the seeds, and their mean."""
    return {
        key: {"value": statistics.fmean(one[key] for one in found), "seeds": [one[key] for one in found]}
        for key in found[0]
    }


if __name__ == "__main__":
    main()

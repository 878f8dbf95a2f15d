"""What the trainer costs beside the computation: ours, a bare loop of PyTorch, and accelerate's loop with diffusers.

python scripts/bench_training.py [--case digits|dit32] [--rounds 12] [--steps 20] [--out bench.json]

All three train the same network from the same weights on the same data set with rectified flow, AdamW at one rate, a
clipped gradient, an average of the weights and a logged loss, in float32. `bare` is the shortest loop that does so: its
noise comes from the global generator and its loss is read every 50 steps. `accelerate` is the loop of diffusers'
examples: Accelerator.prepare, FlowMatchEulerDiscreteScheduler, EMAModel, a learning-rate scheduler, the loss read at
every step. Each round makes `--steps` steps of each in turn, forwards and back, in one process, so that a busy machine
slows all alike. Prints images per second (medians) and the ratios of the rounds, ours over theirs, with a bootstrap
interval of the median; then one line of JSON. docs/speed.md has what was measured.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from gen.eval.quiet import QuietCheck
from gen.training.log import ProgressBar
from gen.training.recipes.digits import digits
from gen.training.run import Run
from gen.training.schedules import Constant
from gen.training.trainer import Trainer

RATE, EVERY = 1e-4, 50
DIT32 = {"name": "dit", "size": 32, "patch": 4, "channels": 3, "classes": 10, "width": 192, "depth": 6, "heads": 6}


class Pictures:
    """Random pictures in memory."""

    classes = 10

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(0)
        self.x = torch.rand(1024, 3, 32, 32, generator=g) * 2 - 1

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], i % 10


def run_of(case: str) -> Run:
    """The quickstart's teacher, or a DiT of 4.2 million parameters for 32 x 32 pictures; nothing beside the loop."""
    run = replace(digits(), schedule=Constant(), steps=10**6, sample_every=0, validate_every=0, save_every=0)
    return run if case == "digits" else replace(run, model=DIT32, data=Pictures(), batch_size=32)


def ours(run: Run, folder: Path) -> Iterator[None]:
    """The trainer's own loop, without a checkpoint."""
    trainer = Trainer(run, folder, "never", "bench", True)
    trainer._open()
    for micro_batches in trainer.speed.timed(trainer._batches()):
        trainer._after_step(trainer.step(micro_batches))
        trainer.saver.check()
        yield


def parts_of(run: Run, folder: Path) -> tuple[torch.nn.Module, Any]:
    """The run's network as it begins, and its data."""
    trainer = Trainer(run, folder, "never", "bench", True)
    return trainer.nets["net"], trainer.data


def bare(run: Run, folder: Path) -> Iterator[None]:
    """PyTorch alone."""
    net, data = parts_of(run, folder)
    average = copy.deepcopy(net).eval().requires_grad_(False)
    own, averaged = [p for p in net.parameters() if p.requires_grad], list(average.parameters())
    optim = torch.optim.AdamW(own, lr=RATE, weight_decay=0.0, foreach=True)
    step = 0
    while True:
        for item in DataLoader(data, run.batch_size, shuffle=True, drop_last=True):
            x, y = item["x"], item["y"]
            t, eps = torch.sigmoid(torch.randn(len(x))), torch.randn_like(x)
            y = torch.where(torch.rand(len(x)) < 0.1, 10, y)
            at = t.reshape(-1, 1, 1, 1)
            loss = ((net((1 - at) * x + at * eps, t, {"y": y}) - (eps - x)) ** 2).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(own, 1.0)
            optim.step()
            optim.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_lerp_(averaged, list(net.parameters()), 1 - 0.999)
            step += 1
            if step % EVERY == 0:
                loss.item()
            yield


def accelerated(run: Run, folder: Path) -> Iterator[None]:
    """The loop of diffusers' examples, with this network in place of theirs."""
    from accelerate import Accelerator
    from diffusers.optimization import get_scheduler
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
    from diffusers.training_utils import EMAModel

    net, data = parts_of(run, folder)
    accelerator, noise_scheduler = Accelerator(cpu=not torch.cuda.is_available()), FlowMatchEulerDiscreteScheduler()
    ema = EMAModel(net.parameters(), decay=0.999)
    optim = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.0)
    rate = get_scheduler("constant", optimizer=optim)
    loader = DataLoader(data, run.batch_size, shuffle=True, drop_last=True)
    net, optim, loader, rate = accelerator.prepare(net, optim, loader, rate)
    sigmas, times = noise_scheduler.sigmas, noise_scheduler.timesteps
    while True:
        for item in loader:
            with accelerator.accumulate(net):
                x, y = item["x"], item["y"]
                noise = torch.randn_like(x)
                index = (torch.sigmoid(torch.randn(len(x))) * len(times)).long()
                sigma = sigmas[index].reshape(-1, 1, 1, 1)
                y = torch.where(torch.rand(len(x)) < 0.1, 10, y)
                out = net((1 - sigma) * x + sigma * noise, times[index] / len(times), {"y": y})
                loss = torch.nn.functional.mse_loss(out.float(), (noise - x).float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(net.parameters(), 1.0)
                optim.step()
                rate.step()
                optim.zero_grad()
            if accelerator.sync_gradients:
                ema.step(net.parameters())
            loss.detach().item()
            yield


def measure(case: str, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of every turn, and what they say."""
    run = replace(run_of(case), optim=replace(digits().optim, lr=RATE))
    loops: dict[str, Callable[[Run, Path], Iterator[None]]] = {"ours": ours, "bare": bare, "accelerate": accelerated}
    took: dict[str, list[float]] = {name: [] for name in loops}
    with tempfile.TemporaryDirectory() as folder:
        running = {name: loop(run, Path(folder) / name) for name, loop in loops.items()}
        for loop in running.values():
            turn(loop, 5)
        bar = ProgressBar("bench", rounds)
        for _ in range(rounds):
            forth = {name: turn(loop, steps) for name, loop in running.items()}
            back = {name: turn(running[name], steps) for name in reversed(running)}
            for name in loops:
                took[name].append(forth[name] + back[name])
            bar.advance()
        bar.close()
    images = 2 * steps * run.batch_size
    found: dict[str, Any] = {
        "case": case,
        "images_per_second": {k: images / statistics.median(v) for k, v in took.items()},
    }
    for name in ("bare", "accelerate"):
        ratios = [theirs / own for theirs, own in zip(took[name], took["ours"], strict=True)]
        low, high = interval(ratios)
        found[f"ours over {name}"] = {"median": statistics.median(ratios), "low": low, "high": high}
    return found | {"rounds": rounds, "steps": steps}


def turn(loop: Iterator[None], steps: int) -> float:
    """Seconds of so many steps."""
    began = time.perf_counter()
    for _ in range(steps):
        next(loop)
    return time.perf_counter() - began


def interval(values: list[float]) -> tuple[float, float]:
    """The middle 95 % of the medians of 2000 resamplings."""
    drawn = torch.randint(len(values), (2000, len(values)), generator=torch.Generator().manual_seed(0))
    medians = torch.tensor(values, dtype=torch.float64)[drawn].quantile(0.5, 1)
    return float(medians.quantile(0.025)), float(medians.quantile(0.975))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["digits", "dit32"], default="digits")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20, help="of each loop in a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a file for the JSON, written if the machine was quiet")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with QuietCheck() as check:
        found = measure(args.case, args.rounds, args.steps)
    for name, rate in found["images_per_second"].items():
        print(f"{name:12}{rate:10.1f} images/s")
    for name in ("bare", "accelerate"):
        ratio = found[f"ours over {name}"]
        print(f"ours over {name}: {ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})")
    print(json.dumps(found))
    return int(args.out is not None and not check.write(args.out, found))


if __name__ == "__main__":
    raise SystemExit(main())

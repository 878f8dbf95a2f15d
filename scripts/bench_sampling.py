"""What a step of the sampling loop costs beside the network: ours with Euler, and diffusers' FlowMatchEuler.

python scripts/bench_sampling.py [--steps 50] [--rounds 100] [--shape 1,4,32,32] [--out bench.json]

Both loops are driven by a model that costs nothing: ours by a denoiser that returns a ready Prediction, theirs by one
that returns a ready velocity. Both count a whole loop, from the numbers of the grid to the last sample: our checks,
their `set_timesteps`, whose share is also told apart. The turns go ours, theirs, theirs, ours in one process on one
thread, so that a busy machine slows both alike. Prints both medians in microseconds a step and the median ratio of the
rounds, then one line of JSON.

Measured (2026-11-22, 2.5 GHz Xeon, torch 2.13, diffusers 0.42.1): 8.4 and 27.4 us a step, ratio 0.31.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from gen.diffusion.path import Flow, Prediction
from gen.diffusion.sampling import integrate
from gen.eval.quiet import QuietCheck
from gen.samplers.solvers.euler import Euler


class Free:
    """A denoiser that has always known."""

    path = Flow()

    def __init__(self, answer: Prediction) -> None:
        self.answer = answer

    def __call__(self, x, t, cond=None, *, s=None, tap=None):
        return self.answer

    def null(self, cond):
        return cond


def measure(shape: tuple[int, ...], steps: int, rounds: int) -> dict[str, object]:
    """Medians over the rounds, microseconds a step."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    x = torch.randn(shape)
    free, grid, solver = Free(Prediction(x, x.clone())), torch.linspace(1, 0, steps + 1, dtype=torch.float64), Euler()
    scheduler, velocity = FlowMatchEulerDiscreteScheduler(), torch.randn(shape)

    def model(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return velocity

    def ours() -> float:
        began = time.perf_counter()
        integrate(free, x, grid, solver)
        return (time.perf_counter() - began) / steps * 1e6

    def theirs() -> float:
        began = time.perf_counter()
        scheduler.set_timesteps(steps)
        setup.append((time.perf_counter() - began) / steps * 1e6)
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(model(state, t), t, state, return_dict=False)[0]
        return (time.perf_counter() - began) / steps * 1e6

    setup: list[float] = []
    turns = [(ours(), theirs(), theirs(), ours()) for _ in range(rounds + 5)][5:]
    pairs = [((a + d) / 2, (b + c) / 2) for a, b, c, d in turns]
    mine, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return {"shape": list(shape), "steps": steps, "ours_us": mine, "diffusers_us": other, "ratio": ratio} | {
        "diffusers_setup_us": statistics.median(setup)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--shape", default="1,4,32,32", help="batch, channels, height, width")
    parser.add_argument("--out", type=Path, help="also write the JSON here, if the machine was quiet")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with QuietCheck() as check:
        found = measure(tuple(int(n) for n in args.shape.split(",")), args.steps, args.rounds)
    print(
        f"ours {found['ours_us']:.1f} us a step, diffusers {found['diffusers_us']:.1f} us, ratio {found['ratio']:.3f}"
    )
    print(json.dumps(found))
    return int(args.out is not None and not check.write(args.out, found))


if __name__ == "__main__":
    raise SystemExit(main())

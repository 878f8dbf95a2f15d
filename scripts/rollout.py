"""A policy of chunks of actions acts in the world that it was trained on; its expert and other policies beside it.

    python scripts/rollout.py [runs/policy] [-n 100]

Without a run it is the expert alone, who plans a chunk without knowing the noise to come, and the policy that repeats
the chunk of the nearest state of the training data. Prints a JSON line for each policy, number of executed actions and
noise of the velocity: the share of episodes that end at the goal without a collision with its standard error, the share
that collide, and the share that pass on the left.

Measured (2026-12-01, 200 episodes, the expert's and the nearest's success at 4, 8, 16 actions done): 1.000 all without
noise; at noise .05 .915 +- .020, .600 +- .035, .260 +- .031, and .830 +- .027, .320 +- .033, .045 +- .015.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

import gen
from gen.config.spec import build
from gen.data.point_mass import CENTRE, PointMass
from gen.rollout import Policy, expert_policy, rollout, sampled_policy

EXECUTE, NOISES, STEPS = (4, 8, 16), (0.0, 0.05), (1, 2, 4, 16)


def nearest(world: PointMass) -> Policy:
    """Return the policy that repeats the chunk of the nearest state that was trained on."""
    data = world.open("train")

    def act(state: Tensor, seeds: Sequence[int]) -> Tensor:
        return data.x[torch.cdist(world.observe(state), data.vector).argmin(1)].double()

    return act


def acted(world: PointMass, policy: Policy, n: int, execute: int, seed: int) -> dict[str, float]:
    """Return what became of n episodes, and the share of those that passed the disc at its left."""
    states = rollout(world, policy, n, execute, seed)
    found = world.outcome(states)
    share = float(found["success"].double().mean())
    passing = (states[..., 0] - CENTRE[0]).abs().argmin(1)
    left = states[torch.arange(n), passing, 1] > 0
    return {
        "success": round(share, 3),
        "error": round((share * (1 - share) / n) ** 0.5, 3),
        "collision": round(float(found["collision"].double().mean()), 3),
        "left": round(float(left.double().mean()), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of a run on these data")
    parser.add_argument("-n", type=int, default=100, help="episodes")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = None if args.folder is None else gen.load(args.folder)
    trained = PointMass() if pipeline is None else build("data", pipeline.info["run"]["data"])
    for noise in NOISES:
        world = replace(trained, noise=noise)
        policies = {"expert": expert_policy(world, args.n, args.seed), "nearest": nearest(trained)}
        if pipeline is not None:
            policies["model"] = sampled_policy(pipeline, world)
        for execute in EXECUTE:
            for name, policy in policies.items():
                row = acted(world, policy, args.n, execute, args.seed)
                print(json.dumps({"policy": name, "noise": noise, "execute": execute, **row}), flush=True)
    for steps in () if pipeline is None else STEPS:
        row = acted(trained, sampled_policy(pipeline, trained, steps=steps), args.n, 8, args.seed)
        print(json.dumps({"policy": f"model, {steps} steps", "noise": trained.noise, "execute": 8, **row}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A point mass driven around a disc to a goal: actions of an exact expert, and the world that they act in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.data.lib.tensors import check_split, content_hash
from gen.diffusion.noise import Noise, derive

__all__ = ["PointMass", "PointMassChunks"]

STEP = 0.1  # of time
STATE_COST, ACTION_COST = (1.0, 0.1), 0.05  # of squared position, velocity and action
START, BESIDE, TURN = (-1.6, 0.0), (-0.8, 0.7), -1.0  # start; where to pass the disc; x from which it is passed
CENTRE, NEAR = (-0.8, 0.0), 0.1  # of the disc; distance from the goal, the origin, that counts as there
OBSERVED = 4.0  # factor on states, which makes their deviations about 1


@dataclass(frozen=True)
class PointMass:
    """Chunks of actions [2, horizon] of an expert, with the state [4] in which each begins as "vector".

    A double integrator in the plane: position and velocity, steps of 0.1, the action is the acceleration, with noise on
    the velocity. The expert is the linear-quadratic regulator, exact. Beside the disc it heads for a point left or
    right of it, by a coin thrown once an episode, and then for the goal; so near the start the law of a chunk has
    two modes, and their mean leads into the disc. A chunk is what the expert would do without further noise.

    Items are all steps of `episodes` episodes; "test" has a quarter as many episodes, with other draws.

    Attributes:
        horizon: actions of a chunk.
        radius: of the disc; 0 for none: then episodes begin anywhere in [-1, 1]^2, and the expert has one way.
        noise: standard deviation of the velocity's noise, of each step and coordinate.
        episodes: of "train".
        steps: of an episode.
        seed: of all draws.
    """

    pictures = False
    vector_width = 4

    horizon: int = 16
    radius: float = 0.3
    noise: float = 0.05
    episodes: int = 400
    steps: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, horizon="[1, 1000]", radius="[0, 0.5]", noise="[0, 1]", episodes="[4, 1000000]",
                     steps="[1, 10000]")  # fmt: skip

    @property
    def shape(self) -> tuple[int, int]:
        return (2, self.horizon)

    @property
    def classes(self) -> int:
        return 0

    @cached_property
    def gain(self) -> Tensor:
        """The regulator's gain on position and velocity of a coordinate, [2], by Riccati's equation."""
        a, b = _exact([[1, STEP], [0, 1]]), _exact([[STEP**2 / 2], [STEP]])
        cost = _exact(STATE_COST).diag()
        value = cost
        for _ in range(1000):
            gain = (b.mT @ value @ a) / (ACTION_COST + b.mT @ value @ b)
            value = cost + a.mT @ value @ (a - b @ gain)
        return gain[0]

    def reset(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """Return states [B, 4] at the start of episodes, and the sides, 1 or -1, on which their expert passes, [B]."""
        draw = noise.uniform("start", 3)
        place = 2 * draw[:, :2] - 1  # [B, 2]
        if self.radius:
            place = _exact(START) + 0.1 * place
        return torch.cat([place, torch.zeros_like(place)], 1), torch.where(draw[:, 2] < 0.5, 1.0, -1.0).double()

    def step(self, state: Tensor, action: Tensor, push: Tensor) -> Tensor:
        """Return the states after a step, [B, 4].

        Args:
            state: [B, 4].
            action: accelerations [B, 2].
            push: what the noise adds to the velocities, [B, 2].
        """
        position, velocity = state.split(2, 1)
        position = position + STEP * velocity + STEP**2 / 2 * action
        return torch.cat([position, velocity + STEP * action + push], 1)

    def expert(self, state: Tensor, side: Tensor) -> Tensor:
        """Return the expert's actions [B, 2] in states [B, 4], on sides [B]."""
        position, velocity = state.split(2, 1)
        target = torch.zeros_like(position)
        if self.radius:
            beside = torch.stack([torch.full_like(side, BESIDE[0]), side * BESIDE[1]], 1)
            target = torch.where(position[:, :1] < TURN, beside, target)
        return -self.gain[0] * (position - target) - self.gain[1] * velocity

    def plan(self, state: Tensor, side: Tensor) -> Tensor:
        """Return the expert's next actions without noise, [B, 2, horizon]."""
        actions = []
        for _ in range(self.horizon):
            actions.append(self.expert(state, side))
            state = self.step(state, actions[-1], torch.zeros_like(actions[-1]))
        return torch.stack(actions, 2)

    def observe(self, state: Tensor) -> Tensor:
        """Return states [B, 4] as a policy's condition, float32, times 4."""
        return (OBSERVED * state).float()

    def outcome(self, states: Tensor) -> dict[str, Tensor]:
        """Return what became of episodes, bool [B] each: "success", at the goal and never inside the disc, "collision".

        Args:
            states: all of them, [B, steps + 1, 4].
        """
        position = states[..., :2]
        hit = ((position - _exact(CENTRE)).norm(dim=-1) < self.radius).any(1)
        return {"success": ~hit & (position[:, -1].norm(dim=-1) < NEAR), "collision": hit}

    def open(self, split: str) -> PointMassChunks:
        """Open "train" or "test"."""
        check_split(split)
        n = self.episodes if split == "train" else self.episodes // 4
        noise = Noise(tuple(derive("point_mass", self.seed, split, i) for i in range(n)))
        state, side = self.reset(noise)
        pushes = self.noise * noise.normal("push", (self.steps, 2)).double()
        states, plans = [], []
        for k in range(self.steps):
            states.append(state)
            plans.append(self.plan(state, side))
            state = self.step(state, self.expert(state, side), pushes[:, k])
        return PointMassChunks(
            torch.stack(plans, 1).flatten(0, 1).float(), self.observe(torch.stack(states, 1).flatten(0, 1))
        )


@dataclass(frozen=True, eq=False)
class PointMassChunks:
    """Items {"x", "vector"}, float32: actions [2, horizon] and the state [4] in which they begin.

    Attributes:
        x: [N, 2, horizon].
        vector: [N, 4].
    """

    x: Tensor
    vector: Tensor

    @cached_property
    def fingerprint(self) -> str:
        """A hash of both."""
        return content_hash("point_mass", self.x, self.vector)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i], "vector": self.vector[i]}

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the items of some rows, stacked."""
        index = torch.tensor(rows)
        return {"x": self.x[index], "vector": self.vector[index]}


def _exact(values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)

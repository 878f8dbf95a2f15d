"""Guidance for flows whose first step is worse than none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import build, part
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import NoisePath, Prediction
from gen.samplers.guides.lib.two_predictions import Pair, Rule, dot

__all__ = ["CFGZero"]


@dataclass(frozen=True)
class CFGZero(Pair):
    """CFG-Zero* (Fan et al. 2025, algorithm 1): k u + scale (c - k u) with k = <c, u> / |u|^2 of each sample.

    space: the parameterisation of c and u; the paper's is the velocity. zero_steps: in so many first steps the velocity
    is zero, so `grid` cuts them off and the walk begins later with the x of the first time: no network runs and no
    solver sees them. It is meant for flows; where the noise level falls in those steps, x keeps what it had. scale 1 is
    the conditional model afterwards; 0 is k u, not u. `steps` counts the whole grid.
    """

    zero_steps: int = 1
    space: Any = part("diffusion.parameterisation", default=Velocity())

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "space", build("diffusion.parameterisation", self.space))
        if self.zero_steps < 0:
            raise UserError(f"CFGZero: zero_steps = {self.zero_steps}; it must be at least 0")

    @property
    def loop_options(self) -> tuple[str, ...]:
        return (*super().loop_options, "zero_steps") if self.zero_steps else super().loop_options

    def grid(self, times: Tensor) -> Tensor:
        """The times that are left to walk, from the x that belongs to times[0]."""
        if self.zero_steps >= len(times) - 1:
            raise UserError(f"CFGZero: zero_steps = {self.zero_steps} of {len(times) - 1} steps; nothing would move")
        return times[self.zero_steps :]

    def rule(self, times: Tensor) -> Rule:
        def rule(path: NoisePath, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
            of_c, of_u = self.space.target(path, *c, t), self.space.target(path, *u, t)
            share = dot(of_c, of_u) / dot(of_u, of_u).clamp(min=torch.finfo(torch.float32).tiny)
            base = share.to(of_u) * of_u
            return self.space.solve(path, x, base + self.scale * (of_c - base), t)

        return rule

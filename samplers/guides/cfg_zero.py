"""Guidance for flows whose first step is worse than none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.parameterisation import Parameterisation, Velocity
from gen.diffusion.path import NoisePath, Prediction
from gen.samplers.guides.lib.two_predictions import TwoPredictionGuide, dot

__all__ = ["CFGZero"]


@dataclass(frozen=True)
class CFGZero(TwoPredictionGuide):
    """CFG-Zero* (Fan et al. 2025, algorithm 1): k u + scale (c - k u) with k = <c, u> / |u|^2 of each sample.

    It is meant for flows. scale 1 is the conditional model after the first steps; 0 is k u, not u. `steps` counts the
    whole grid.

    Attributes:
        zero_steps: in so many first steps the velocity is zero, so `grid` cuts them off and the loop begins later with
            the x of the first time: no network runs and no solver sees them. Where the noise level falls in those
            steps, x keeps what it had.
        space: the parameterisation of c and u; the paper's is the velocity.
    """

    zero_steps: int = 1
    space: Parameterisation = part("diffusion.parameterisation", default=Velocity())

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, zero_steps="[0, inf)")

    @property
    def loop_options(self) -> tuple[str, ...]:
        return (*super().loop_options, "zero_steps") if self.zero_steps else super().loop_options

    def grid(self, times: Tensor) -> Tensor:
        if self.zero_steps >= len(times) - 1:
            raise UserError(f"CFGZero: zero_steps = {self.zero_steps} of {len(times) - 1} steps; nothing would move")
        return times[self.zero_steps :]

    def combine(self, path: NoisePath, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
        of_c, of_u = self.space.target(path, *c, t), self.space.target(path, *u, t)
        share = dot(of_c, of_u) / dot(of_u, of_u).clamp(min=torch.finfo(torch.float32).tiny)
        base = share.to(of_u) * of_u
        return self.space.solve(path, x, base + self.scale * (of_c - base), t)

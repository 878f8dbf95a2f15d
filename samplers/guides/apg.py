"""Adaptive projected guidance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.parameterisation import X0
from gen.diffusion.path import NoisePath, Prediction
from gen.samplers.guides.lib.two_predictions import Combine, TwoPredictionGuide, dot

__all__ = ["APG"]


@dataclass(frozen=True)
class APG(TwoPredictionGuide):
    """c + (scale - 1) d in x0, with d a projection of c - u, for high scales (Sadat et al. 2024, algorithm 1).

    momentum = 0, threshold = None, eta = 1 is plain guidance. The sum of differences is that of one loop, and starts
    anew at the first time of its grid. Every guided evaluation adds to it, so a solver with two of them in a step
    remembers half as many steps.

    Attributes:
        scale: as of TwoPredictionGuide.
        momentum: in (-1, 1): each difference adds this share of the sum before it; below 0 it moves away from it.
        threshold: the largest norm of the sum, per sample; None for any.
        eta: how much of its part along c is kept, which is what saturates colours.
    """

    scale: float = 4.0
    momentum: float = -0.5
    threshold: float | None = 15.0
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, momentum="(-1, 1)", threshold="(0, inf)")

    @property
    def loop_options(self) -> tuple[str, ...]:
        return (*super().loop_options, "momentum") if self.momentum else super().loop_options

    def combine_in_loop(self, times: Tensor) -> Combine:
        total: Tensor | None = None  # of the differences so far

        def combine(path: NoisePath, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
            nonlocal total
            d = c.x0 - u.x0
            if total is not None and not bool((t >= times[0]).all()):
                d = d + self.momentum * total
            total = d
            return X0().solve(path, x, c.x0 + (self.scale - 1) * self.project(self.clip(d), c.x0), t)

        return combine

    def clip(self, d: Tensor) -> Tensor:
        """Return d [B, ...] with each sample's norm at most the threshold."""
        if self.threshold is None:
            return d
        return d * (self.threshold / dot(d, d).sqrt()).clamp(max=1).to(d)

    def project(self, d: Tensor, c: Tensor) -> Tensor:
        """Return d [B, ...] with only eta of its part along c."""
        along = dot(d, c) / dot(c, c).clamp(min=torch.finfo(torch.float32).tiny)
        return d - (1 - self.eta) * (along * c).to(d)

"""Heun's trapezoid rule, with EDM's churn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.contracts import DenoiseFn, DrawNoise
from gen.diffusion.path import NoisePath
from gen.samplers.solvers.lib.stages import RungeKutta, Tableau

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun(RungeKutta):
    """An Euler step, then the same step with the mean of both ends' predictions (Karras et al. 2022, algorithms 1, 2).

    The last step, to t = 0, is Euler's: 2N - 1 evaluations. Order 2; None with churn.

    Attributes:
        churn: EDM's gamma = S_churn / N, N the number of steps, in [0, sqrt(2) - 1]: noise that is added before a step
            raises sigma / alpha by this part of itself, never above the path's own top level.
        s_min, s_max: EDM's S_tmin and S_tmax, the range of sigma / alpha where noise is added; None for no upper end.
        s_noise: EDM's S_noise, the factor on that noise.
    """

    churn: float = 0.0
    s_min: float = 0.0
    s_max: float | None = None
    s_noise: float = 1.0

    tableau: ClassVar[Tableau] = Tableau((1.0,), ((1,),), (1, 1))

    def __post_init__(self) -> None:
        highest = math.sqrt(2) - 1 + 1e-9  # of EDM's S_churn / steps
        check_fields(self, churn=f"[0, {highest}]", s_min="[0, inf)", s_max="[s_min, inf)", s_noise="[0, inf)")

    @property
    def order(self) -> int | None:
        return None if self.churn else 2

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: DrawNoise
    ) -> tuple[Tensor, None]:
        if self.churn:
            x, t = self.add_churn(path, x, t, noise)
        return super().step(f, path, x, t, s, state, noise)

    def add_churn(self, path: NoisePath, x: Tensor, t: Tensor, noise: DrawNoise) -> tuple[Tensor, Tensor]:
        """Return x and t with noise added; unchanged outside [s_min, s_max] and at the top."""
        alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
        if alpha == 0 or sigma / alpha < self.s_min or (self.s_max is not None and sigma / alpha > self.s_max):
            return x, t
        level = torch.tensor(sigma / alpha * (1 + self.churn), dtype=torch.float64)
        hat = path.t_from_lambda(-level.log()).clamp(min=float(t), max=path.t1)
        keep = float(path.alpha(hat)) / alpha
        added = math.sqrt(max(float(path.sigma(hat)) ** 2 - (keep * sigma) ** 2, 0.0))
        return torch.add(x * keep, noise(), alpha=added * self.s_noise), hat

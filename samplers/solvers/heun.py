"""Heun's trapezoid rule, with EDM's churn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.path import NoisePath
from gen.diffusion.sampling import DenoiseFn
from gen.samplers.solvers.lib.stages import Stage, shift

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun:
    """An Euler step, then the same step with the mean of both ends' predictions (Karras et al. 2022, algorithms 1, 2).

    On EDM and flow this is the published rule; written with increments of alpha and sigma it is second order on every
    path and needs no derivative of either. The last step, to t = 0, is Euler's: 2N - 1 evaluations.

    churn: EDM's gamma = S_churn / N, N the number of steps: where s_min <= sigma / alpha <= s_max noise is first added
    that raises sigma / alpha by this part of itself, at most sqrt(2) - 1, and never above the path's own top level.
    s_noise: the factor on that noise.
    """

    churn: float = 0.0
    s_min: float = 0.0
    s_max: float | None = None
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.churn <= math.sqrt(2) - 1 + 1e-9:
            raise UserError(f"Heun: churn = {self.churn}; it is EDM's S_churn / steps, from 0 to sqrt(2) - 1 = 0.4142")
        if self.s_min < 0 or (self.s_max is not None and self.s_max < self.s_min) or self.s_noise < 0:
            raise UserError(
                f"Heun: s_min = {self.s_min}, s_max = {self.s_max}, s_noise = {self.s_noise}; "
                "it must be 0 <= s_min <= s_max and s_noise >= 0"
            )

    @property
    def order(self) -> int | None:
        return None if self.churn else 2

    def nfe(self, steps: int) -> int:
        return 2 * steps - 1

    def init(self) -> None:
        return None

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, None]:
        if self.churn:
            x, t = self.stir(path, x, t, noise)
        pred = f(x, t)
        euler = path.interpolate(pred, s)
        if s == 0:
            return euler, None
        here, there = Stage.of(path, x, pred, t), Stage.of(path, euler, f(euler, s), s)
        da, ds = float(path.alpha(s) - path.alpha(t)), float(path.sigma(s) - path.sigma(t))
        return shift(euler, here, there, da / 2, ds / 2), None

    def stir(self, path: NoisePath, x: Tensor, t: Tensor, noise: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """x and t with noise added; as they are outside [s_min, s_max] and at the top."""
        alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
        if alpha == 0 or sigma / alpha < self.s_min or (self.s_max is not None and sigma / alpha > self.s_max):
            return x, t
        level = torch.tensor(sigma / alpha * (1 + self.churn), dtype=torch.float64)
        hat = path.t_from_lambda(-level.log()).clamp(min=float(t), max=path.t1)
        keep = float(path.alpha(hat)) / alpha
        added = math.sqrt(max(float(path.sigma(hat)) ** 2 - (keep * sigma) ** 2, 0.0))
        return torch.add(x * keep, noise(), alpha=added * self.s_noise), hat

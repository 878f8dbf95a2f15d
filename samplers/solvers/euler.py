"""Euler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.diffusion.contracts import DenoiseFn, DrawNoise, Solver
from gen.diffusion.path import NoisePath

__all__ = ["Euler"]


@dataclass(frozen=True)
class Euler(Solver):
    """x_s = alpha_s x0 + sigma_s eps, first order on every path: DDIM (Song et al. 2021, eq. 12, sigma = 0)."""

    order: ClassVar[int] = 1

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: DrawNoise
    ) -> tuple[Tensor, None]:
        return path.interpolate(f(x, t), s), None

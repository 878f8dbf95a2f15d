"""Euler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.diffusion.path import NoisePath
from gen.diffusion.sampling import DenoiseFn

__all__ = ["Euler"]


@dataclass(frozen=True)
class Euler:
    """x_s = alpha_s x0 + sigma_s eps, first order on every path: DDIM (Song et al. 2021, eq. 12, sigma = 0)."""

    order: ClassVar[int] = 1

    def nfe(self, steps: int) -> int:
        return steps

    def init(self) -> None:
        return None

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, None]:
        return path.interpolate(f(x, t), s), None

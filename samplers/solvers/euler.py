"""Euler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.diffusion.path import Path
from gen.diffusion.sampling import Evaluate

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
        self, f: Evaluate, path: Path, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, None]:
        return path.land(f(x, t), s), None

"""Heun's trapezoid rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.path import Path, Prediction
from gen.sample import Evaluate

__all__ = ["Heun"]


@dataclass(frozen=True)
class Heun:
    """An Euler step, then the same step with the mean of both ends' predictions (Karras et al. 2022, algorithm 1).

    On EDM and flow this is the published rule; written with increments of alpha and sigma it is second order on every
    path and needs no derivative of either. The last step, to t = 0, is Euler's: 2N - 1 evaluations.
    """

    order: ClassVar[int] = 2

    def nfe(self, steps: int) -> int:
        return 2 * steps - 1

    def init(self) -> None:
        return None

    def step(
        self, f: Evaluate, path: Path, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, None]:
        here = f(x, t)
        euler = path.advance(x, here, t, s)
        if s == 0:
            return euler, None
        there = f(euler, s)
        mean = Prediction((here.x0 + there.x0) / 2, (here.eps + there.eps) / 2)
        return path.advance(x, mean, t, s), None

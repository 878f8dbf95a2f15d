"""The midpoint rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.diffusion.path import NoisePath, Prediction
from gen.diffusion.sampling import DenoiseFn
from gen.samplers.solvers.lib.stages import Stage, shift

__all__ = ["Midpoint", "midpoint"]


@dataclass(frozen=True)
class Midpoint:
    """An Euler step to (t + s) / 2, then the whole step with the prediction found there.

    On EDM and flow this is the classical rule; written with increments of alpha and sigma it is second order on every
    path and needs no derivative of either. It never asks at s, so the last step, to t = 0, is second order too.
    """

    order: ClassVar[int] = 2

    def nfe(self, steps: int) -> int:
        return 2 * steps

    def init(self) -> None:
        return None

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, None]:
        return midpoint(f, path, x, f(x, t), t, s), None


def midpoint(f: DenoiseFn, path: NoisePath, x: Tensor, pred: Prediction, t: Tensor, s: Tensor) -> Tensor:
    """x at s by one step from the prediction at (x, t)."""
    m = (t + s) / 2
    u = path.interpolate(pred, m)
    here, there = Stage.of(path, x, pred, t), Stage.of(path, u, f(u, m), m)
    da, ds = float(path.alpha(s) - path.alpha(t)), float(path.sigma(s) - path.sigma(t))
    return shift(path.interpolate(pred, s), here, there, da, ds)

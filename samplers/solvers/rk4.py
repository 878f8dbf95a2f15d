"""The classical fourth-order rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.diffusion.path import NoisePath, Prediction
from gen.diffusion.sampling import DenoiseFn
from gen.samplers.solvers.lib.exponential import base
from gen.samplers.solvers.lib.stages import velocity_step
from gen.samplers.solvers.midpoint import midpoint

__all__ = ["RK4", "rk4"]


@dataclass(frozen=True)
class RK4:
    """Runge-Kutta's classical rule in t for dx/dt = alpha' x0 + sigma' eps.

    Its last stage asks at the end of the step, where at t = 0 sigma' may be infinite and eps unknown: the last step, to
    t = 0, is the midpoint rule's. 4N - 2 evaluations.
    """

    order: ClassVar[int] = 4

    def nfe(self, steps: int) -> int:
        return 4 * steps - 2

    def init(self) -> None:
        return None

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, None]:
        pred = f(x, t)
        return (midpoint if s == 0 else rk4)(f, path, x, pred, t, s), None


def rk4(f: DenoiseFn, path: NoisePath, x: Tensor, pred: Prediction, t: Tensor, s: Tensor) -> Tensor:
    """x at s > 0 by one step from the prediction at (x, t)."""
    m, x0 = (t + s) / 2, base(path, x, pred, t)
    extra = pred.x0 - x0

    def slope(u: Tensor, t: Tensor) -> Tensor:
        there = f(u, t)
        return path.velocity(Prediction(base(path, u, there, t), there.eps), t)

    k1 = path.velocity(Prediction(x0, pred.eps), t)
    k2 = slope(velocity_step(path, x, k1, t, m, extra), m)
    k3 = slope(velocity_step(path, x, k2, t, m, extra), m)
    k4 = slope(velocity_step(path, x, k3, t, s, extra), s)
    return velocity_step(path, x, (k1 + 2 * k2 + 2 * k3 + k4) / 6, t, s, extra)

"""DPM-Solver++, singlestep."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.path import NoisePath, Prediction
from gen.diffusion.sampling import DenoiseFn
from gen.samplers.solvers.lib.exponential import base

__all__ = ["DPMppSingle", "single"]


@dataclass(frozen=True)
class DPMppSingle:
    """DPM-Solver++(2S, 3S): two or three evaluations inside each step and no memory (Lu et al. 2022, algorithm 1).

    The stages lie at 1/2, or at 1/3 and 2/3, of the step in log-SNR; in a step from infinite noise, in alpha / sigma.
    The last step, to t = 0, is first order: k(N - 1) + 1 evaluations.
    """

    solver_order: int = 2

    def __post_init__(self) -> None:
        if self.solver_order not in (2, 3):
            raise UserError(f"DPMppSingle: solver_order = {self.solver_order}; allowed: 2, 3")

    @property
    def order(self) -> int:
        return self.solver_order

    def nfe(self, steps: int) -> int:
        return self.solver_order * (steps - 1) + 1

    def init(self) -> None:
        return None

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, None]:
        pred = f(x, t)
        return (path.interpolate(pred, s) if s == 0 else single(f, path, x, pred, t, s, self.solver_order)), None


def single(f: DenoiseFn, path: NoisePath, x: Tensor, pred: Prediction, t: Tensor, s: Tensor, order: int) -> Tensor:
    """x at s > 0 by a rule of order 2 or 3 that starts from the prediction at (x, t)."""
    first, end = float(path.lam(t)), float(path.lam(s))
    h, x0 = end - first, base(path, x, pred, t)

    def stage(part: float, slope: float, last: Tensor | None) -> tuple[Tensor, Tensor]:
        """The time at a part of the step, and x0 there; slope: the share of the last stage's x0."""
        lam = first + part * h if math.isfinite(h) else end + math.log(part)
        m = path.t_from_lambda(torch.tensor(lam, dtype=torch.float64))
        u = path.interpolate(pred, m)
        if last is not None:
            u = torch.add(u, last - x0, alpha=slope * float(path.alpha(m)))
        return m, base(path, u, f(u, m), m)

    if order == 2:
        _, middle = stage(1 / 2, 0.0, None)
        return torch.add(path.interpolate(pred, s), middle - x0, alpha=-float(path.alpha(s)) * math.expm1(-h))
    _, third = stage(1 / 3, 0.0, None)
    # Seen from infinite noise the step is one of Heun's third-order rule in alpha / sigma.
    slope, share = (2 * _phi(2 * h / 3), 1.5 * _phi(h)) if math.isfinite(h) else (1.0, 0.75)
    _, two_thirds = stage(2 / 3, slope, third)
    return torch.add(path.interpolate(pred, s), two_thirds - x0, alpha=share * float(path.alpha(s)))


def _phi(h: float) -> float:
    """int_0^1 of e^(-h (1 - u)) u du, times h: 1 + (e^-h - 1) / h, without its cancellation for short steps."""
    if h > 0.1:
        return 1 + math.expm1(-h) / h
    return sum(-((-h) ** k) / math.factorial(k + 1) for k in range(1, 12))

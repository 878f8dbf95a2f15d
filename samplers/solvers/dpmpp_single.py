"""DPM-Solver++, singlestep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.diffusion.contracts import DenoiseFn, DrawNoise
from gen.diffusion.path import NoisePath, Prediction
from gen.samplers.solvers.lib.exponential import Multistep, data_prediction

__all__ = ["DPMppSingle", "singlestep"]


@dataclass(frozen=True)
class DPMppSingle(Multistep):
    """DPM-Solver++(2S, 3S): two or three evaluations inside each step and no history (Lu et al. 2022, algorithm 1).

    The stages lie at 1/2, or at 1/3 and 2/3, of the step in log-SNR; in a step from infinite noise, in alpha / sigma.
    The last step, to t = 0, is first order: k(N - 1) + 1 evaluations.

    Attributes:
        solver_order: k, 2 or 3.
    """

    orders: ClassVar[Sequence[int]] = (2, 3)

    def nfe(self, steps: int) -> int:
        return self.solver_order * (steps - 1) + 1

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: tuple[()], noise: DrawNoise
    ) -> tuple[Tensor, tuple[()]]:
        pred = f(x, t)
        return (path.interpolate(pred, s) if s == 0 else singlestep(f, path, x, pred, t, s, self.solver_order)), ()


def singlestep(f: DenoiseFn, path: NoisePath, x: Tensor, pred: Prediction, t: Tensor, s: Tensor, order: int) -> Tensor:
    """Advance x to s > 0 by DPM-Solver++(2S) or (3S).

    Args:
        f: the denoiser, called order - 1 times.
        path: of x.
        x: state at t, [B, ...].
        pred: the prediction at x.
        t, s: times, 0-d.
        order: 2 or 3.
    """
    first, end = float(path.lam(t)), float(path.lam(s))
    h, x0 = end - first, data_prediction(path, x, pred, t)

    def stage(part: float, slope: float, last: Tensor | None) -> tuple[Tensor, Tensor]:
        """The time at a part of the step, and x0 there; slope: the share of the last stage's x0."""
        lam = first + part * h if math.isfinite(h) else end + math.log(part)
        m = path.t_from_lambda(torch.tensor(lam, dtype=torch.float64))
        u = path.interpolate(pred, m)
        if last is not None:
            u = torch.add(u, last - x0, alpha=slope * float(path.alpha(m)))
        return m, data_prediction(path, u, f(u, m), m)

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

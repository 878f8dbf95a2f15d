"""PNDM without its Runge-Kutta steps: PLMS."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.diffusion.contracts import DenoiseFn, DrawNoise, Solver
from gen.diffusion.path import NoisePath, Prediction
from gen.samplers.solvers.lib.exponential import data_prediction

__all__ = ["PNDM"]

Epsilons = tuple[Tensor, ...]  # of up to four evaluations, newest first

# Adams-Bashforth's weights for equal steps, newest first, by the number of values.
WEIGHTS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


@dataclass(frozen=True)
class PNDM(Solver):
    """DDIM with a mean of eps over up to four evaluations (Liu et al. 2022, eqs. 9 and 12): Stable Diffusion's PLMS.

    That is diffusers' `PNDMScheduler` with `skip_prk_steps`. The weights are those of equal steps, whatever the grid.
    The first step is made twice, the second time with the mean of the eps at both its ends, or from alpha = 0, where
    they say nothing of x0, with that of x0. Where alpha = 1 the order is four, elsewhere two: the mean does not follow
    sigma / alpha within a step.
    """

    @property
    def order(self) -> int | None:
        return 2

    def nfe(self, steps: int) -> int:
        return steps + (steps > 1)

    def init(self) -> Epsilons:
        return ()

    def step(
        self,
        f: DenoiseFn,
        path: NoisePath,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        state: Epsilons,
        noise: DrawNoise,
    ) -> tuple[Tensor, Epsilons]:
        pred = f(x, t)
        out, history = path.interpolate(pred, s), (pred.eps, *state)[:4]
        if not state and s > 0:
            return _mean_of_both_ends(path, x, pred, t, s, out, f(out, s)), history
        for weight, eps in zip(WEIGHTS[len(history) - 1][1:], history[1:], strict=True):
            out = torch.add(out, eps - pred.eps, alpha=weight * _change(path, t, s))
        return out, history


def _change(path: NoisePath, t: Tensor, s: Tensor) -> float:
    """Return dx_s / deps for a given x_t, alpha_t > 0: x0 follows eps."""
    return float(path.sigma(s) - path.alpha(s) * path.sigma(t) / path.alpha(t))


def _mean_of_both_ends(
    path: NoisePath, x: Tensor, pred: Prediction, t: Tensor, s: Tensor, out: Tensor, end: Prediction
) -> Tensor:
    """Return x_s by the mean of two predictions, at x_t and at `out`, which the first alone led to."""
    if float(path.alpha(t)) > 1e-12 * float(path.sigma(t)):  # cos(pi / 2) is 6e-17
        return torch.add(out, end.eps - pred.eps, alpha=_change(path, t, s) / 2)
    before, after = data_prediction(path, x, pred, t), data_prediction(path, out, end, s)
    return torch.add(out, after - before, alpha=float(path.alpha(s)) / 2)

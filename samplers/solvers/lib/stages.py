"""What the Runge-Kutta and Adams solvers share: an evaluation whose x0 and eps add up to its x."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gen.diffusion.path import NoisePath, Prediction
from gen.samplers.solvers.lib.exponential import base

__all__ = ["Stage", "shift", "velocity_step"]


class Stage(NamedTuple):
    """One evaluation at time t: x0 and eps [B, ...] that add up to the x it was made at."""

    t: float
    x0: Tensor
    eps: Tensor

    @classmethod
    def of(cls, path: NoisePath, x: Tensor, pred: Prediction, t: Tensor) -> Stage:
        return cls(float(t), base(path, x, pred, t), pred.eps)


def shift(out: Tensor, here: Stage, there: Stage, data: float, noise: float) -> Tensor:
    """out + data (x0' - x0) + noise (eps' - eps): a first-order step's correction by another evaluation."""
    return torch.add(torch.add(out, there.x0 - here.x0, alpha=data), there.eps - here.eps, alpha=noise)


def velocity_step(path: NoisePath, x: Tensor, slope: Tensor, t: Tensor, s: Tensor, extra: Tensor) -> Tensor:
    """x + (s - t) slope, and the share at s of what a pair's x0 has beyond the one that adds up to x."""
    return torch.add(torch.add(x, slope, alpha=float(s - t)), extra, alpha=float(path.alpha(s)))

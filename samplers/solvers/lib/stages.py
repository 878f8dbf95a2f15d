"""Stages of a step and explicit Runge-Kutta rules, given by their Butcher tableaux.

The ODE is dx/dt = alpha' x0 + sigma' eps. A pair of a guide (CFG++) does not add up to x; then the rules integrate the
x0 that does, and the rest of the pair's x0 enters the step's end as alpha_s (pred.x0 - x0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from gen.diffusion.contracts import DenoiseFn, DrawNoise, Solver
from gen.diffusion.path import NoisePath, Prediction
from gen.samplers.solvers.lib.exponential import data_prediction

__all__ = ["CLASSICAL", "MIDPOINT", "RungeKutta", "Stage", "Tableau", "add_stage", "runge_kutta_step"]


class Stage(NamedTuple):
    """One evaluation at time t: x0 and eps [B, ...] that add up to its x."""

    t: float
    x0: Tensor
    eps: Tensor

    @classmethod
    def of(cls, path: NoisePath, x: Tensor, pred: Prediction, t: Tensor) -> Stage:
        return cls(float(t), data_prediction(path, x, pred, t), pred.eps)


def add_stage(out: Tensor, here: Stage, there: Stage, data: float, noise: float) -> Tensor:
    """Return out + data (x0' - x0) + noise (eps' - eps): a first-order step corrected by another evaluation.

    Args:
        out: the first-order step, [B, ...].
        here, there: the step's first evaluation, and the other one.
        data, noise: weights.
    """
    return torch.add(torch.add(out, there.x0 - here.x0, alpha=data), there.eps - here.eps, alpha=noise)


class Tableau(NamedTuple):
    """Butcher tableau of an explicit rule with m stages; the first lies at the step's start.

    Weights are those of a mean, any numbers, so that they can be written as integers.

    Attributes:
        nodes: c_2 .. c_m, the other stages' shares of the step, in (0, 1].
        rows: a_ij / c_i up to a factor: the weights of the earlier slopes whose mean leads to stage i = 2 .. m.
        weights: b_j up to a factor: the weights of all slopes whose mean leads to the step's end.
    """

    nodes: tuple[float, ...]
    rows: tuple[tuple[int, ...], ...]
    weights: tuple[int, ...]


EULER = Tableau((), (), (1,))
MIDPOINT = Tableau((0.5,), ((1,),), (0, 1))
CLASSICAL = Tableau((0.5, 0.5, 1.0), ((1,), (0, 1), (0, 0, 1)), (1, 2, 2, 1))


@dataclass(frozen=True)
class RungeKutta(Solver):
    """An explicit Runge-Kutta rule, given by its tableau.

    Rules of two stages are written with increments of alpha and sigma: on EDM and flow that is the classical rule, on
    every path it is second order, and no derivative of either is needed. Others take slopes in t. A rule with a stage
    at the step's end cannot call f at t = 0, so its last step is the midpoint rule's, or Euler's if it has two stages.
    """

    tableau: ClassVar[Tableau]

    @property
    def last(self) -> Tableau:
        """The rule of the step to t = 0."""
        rule = self.tableau
        return rule if 1.0 not in rule.nodes else EULER if len(rule.weights) == 2 else MIDPOINT

    def nfe(self, steps: int) -> int:
        return len(self.tableau.weights) * (steps - 1) + len(self.last.weights)

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: DrawNoise
    ) -> tuple[Tensor, None]:
        return runge_kutta_step(self.last if s == 0 else self.tableau, f, path, x, f(x, t), t, s), None


def runge_kutta_step(
    rule: Tableau, f: DenoiseFn, path: NoisePath, x: Tensor, pred: Prediction, t: Tensor, s: Tensor
) -> Tensor:
    """Advance x from t to s by one step of a rule.

    Args:
        rule: with a stage at the step's end, it needs s > 0.
        f: the denoiser, called at all stages but the first.
        path: of x.
        x: state at t, [B, ...].
        pred: the prediction at x.
        t, s: times, 0-d.
    """
    return (_by_slopes if len(rule.weights) > 2 else _by_increments)(rule, f, path, x, pred, t, s)


def _by_increments(
    rule: Tableau, f: DenoiseFn, path: NoisePath, x: Tensor, pred: Prediction, t: Tensor, s: Tensor
) -> Tensor:
    """x at s by a rule of at most two stages, in increments of alpha and sigma."""
    out = path.interpolate(pred, s)
    if not rule.nodes:
        return out
    m, share = _time(t, s, rule.nodes[0]), rule.weights[1] / sum(rule.weights)
    u = out if rule.nodes[0] == 1 else path.interpolate(pred, m)
    here, there = Stage.of(path, x, pred, t), Stage.of(path, u, f(u, m), m)
    da, ds = float(path.alpha(s) - path.alpha(t)), float(path.sigma(s) - path.sigma(t))
    return add_stage(out, here, there, da * share, ds * share)


def _by_slopes(
    rule: Tableau, f: DenoiseFn, path: NoisePath, x: Tensor, pred: Prediction, t: Tensor, s: Tensor
) -> Tensor:
    """x at s by any rule, in slopes of what x has beside alpha x0 + sigma eps, which is exact where x0 and eps stay."""
    x0 = data_prediction(path, x, pred, t)
    slopes: list[Tensor] = []  # of all stages but the first, where it is zero

    def advance(weights: Sequence[int], m: Tensor) -> Tensor:
        out = path.interpolate(pred, m)
        for weight, slope in zip(weights[1:], slopes, strict=True):
            out = torch.add(out, slope, alpha=float(m - t) * weight / sum(weights)) if weight else out
        return out

    for node, row in zip(rule.nodes, rule.rows, strict=True):
        m = _time(t, s, node)
        u = advance(row, m)
        there = f(u, m)
        slopes.append(path.velocity(Prediction(data_prediction(path, u, there, m) - x0, there.eps - pred.eps), m))
    return advance(rule.weights, s)


def _time(t: Tensor, s: Tensor, node: float) -> Tensor:
    return (1 - node) * t + node * s

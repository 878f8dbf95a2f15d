"""Exponential and multistep integrators: history of predictions, and exact integrals of polynomials through it.

In half log-SNR lam = log(alpha / sigma) the probability-flow ODE is d(x / sigma) / dlam = e^lam x0, so that
x_s = sigma_s / sigma_t x_t + alpha_s int e^(lam - lam_s) x0 dlam (Lu et al. 2022, eq. 9). The order is the number of
values of x0 that the polynomial under that integral interpolates; the integrals are numbers, computed once a step in
float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.contracts import Solver
from gen.diffusion.path import NoisePath, Prediction, expand

__all__ = [
    "History",
    "Multistep",
    "Node",
    "add_corrections",
    "data_prediction",
    "integrals",
    "lagrange",
    "quadrature",
    "ratio_integrals",
]


class Node(NamedTuple):
    """A value that a multistep rule interpolates, x0 or eps [B, ...], and the half log-SNR that it belongs to."""

    lam: float
    value: Tensor


History = tuple[Node, ...]  # newest first


@dataclass(frozen=True)
class Multistep(Solver):
    """Defaults of a solver that is named by its order and remembers the predictions of earlier steps.

    `solver_order` is the order of the rule once it has its history. Where the first steps are of low order, as in all
    published code, the whole loop is of second order at most: their error stays, and on a uniform grid from alpha = 0
    the first steps in log-SNR (log 2, log 1.5, ...) do not shrink with their number. The rule's own order shows where
    that error is negligible, such as in log-SNR steps from sigma = 80.

    Attributes:
        solver_order: how many values the polynomial interpolates.
    """

    solver_order: int = 2

    orders: ClassVar[Sequence[int]] = (1, 2, 3)  # that the method has

    def __post_init__(self) -> None:
        check_fields(self)
        if self.solver_order not in self.orders:
            allowed = ", ".join(map(str, self.orders))
            raise UserError(f"{type(self).__name__}: solver_order = {self.solver_order}; allowed: {allowed}")

    @property
    def order(self) -> int | None:
        return min(self.solver_order, 2)

    def init(self) -> Any:
        return ()

    def usable_history(self, here: Node, history: History) -> History:
        """Return the newest nodes, at most `solver_order`, with finite lam; `here` alone if there is none."""
        return tuple(node for node in (here, *history) if math.isfinite(node.lam))[: self.solver_order] or (here,)

    def push_history(self, here: Node, history: History) -> History:
        """Return the nodes that the next step may use, newest first."""
        return (here, *history)[: self.solver_order - 1]


def data_prediction(path: NoisePath, x: Tensor, pred: Prediction, t: Tensor) -> Tensor:
    """Return the x0 that adds up to x with pred.eps: (x - sigma eps) / alpha, or pred.x0 where alpha = 0.

    That is pred.x0, to the bit, unless a guide made a pair (CFG++): what differs by rounding only counts as equal,
    since 1 / alpha would blow it up.

    Args:
        path: of x.
        x: state at t, [B, ...].
        pred: the prediction at x.
        t: time of x, 0-d or [B].
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    data, noise = expand(alpha, x) * pred.x0, expand(sigma, x) * pred.eps
    rest = x - data - noise
    rounding = 64 * torch.finfo(x.dtype).eps * (x.abs() + data.abs() + noise.abs())
    inverse = torch.where(alpha > 0, 1 / alpha, torch.zeros_like(alpha))
    return pred.x0 + torch.where(rest.abs() > rounding, expand(inverse, x) * rest, torch.zeros_like(rest))


def add_corrections(out: Tensor, weights: Sequence[float], nodes: History) -> Tensor:
    """Return out + sum_j weights[j] (value_j - value_0), the higher orders of a multistep rule.

    Args:
        out: the first-order step, which has the share of value_0, [B, ...].
        weights: one for each node; the first is not used.
        nodes: newest first.
    """
    for weight, node in zip(weights[1:], nodes[1:], strict=True):
        out = torch.add(out, node.value - nodes[0].value, alpha=weight)
    return out


def integrals(nodes: History, start: float, end: float, rate: float = 1.0) -> list[float]:
    """Integrate e^(rate (lam - end)) L_j(lam) over lam, for each Lagrange polynomial L_j of the nodes' lam.

    Args:
        nodes: with finite, distinct lam.
        start, end: limits, half log-SNR.
        rate: of the exponential; 1 for x0 in the ODE, -1 for eps.
    """
    lam, weight = quadrature(start - end, 0.0)
    basis = lagrange(lam, [node.lam - end for node in nodes])
    integral: list[float] = (basis * (weight * np.exp(rate * lam))).sum(-1).tolist()
    return integral


def ratio_integrals(nodes: History, end: float) -> list[float]:
    """Integrate L_j(r) over r = alpha / sigma from the newest node on, for each Lagrange polynomial of the nodes' r.

    d(x / sigma) / dr = x0. Near pure noise x0 is smooth in r, which is finite there, and not in lam = log r.

    Args:
        nodes: newest first; lam may be -inf, where alpha = 0.
        end: half log-SNR at the step's end.
    """
    ratios = [math.exp(node.lam) for node in nodes]
    r, weight = quadrature(ratios[0], math.exp(end))
    integral: list[float] = (lagrange(r, ratios) * weight).sum(-1).tolist()
    return integral


def lagrange(u: np.ndarray, nodes: Sequence[float]) -> np.ndarray:
    """Evaluate the Lagrange polynomials of the nodes, float64 [nodes, n].

    Args:
        u: points [n].
        nodes: distinct numbers.
    """
    basis = np.ones((len(nodes), len(u)))
    for j, here in enumerate(nodes):
        for k, other in enumerate(nodes):
            if k != j:
                basis[j] *= (u - other) / (here - other)
    return basis


def quadrature(start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Return points and weights of Gauss's rule; exact to rounding for e^u over any step of a sampler.

    Args:
        start, end: limits of the integral.
    """
    points, weights = _gauss()
    return start + (end - start) * points, (end - start) * weights


@functools.cache
def _gauss(n: int = 48) -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.legendre.leggauss(n)
    return (points + 1) / 2, weights / 2

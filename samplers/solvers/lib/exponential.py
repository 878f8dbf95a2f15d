"""What the multistep and exponential solvers share: memory of predictions, and exact integrals of what they remember.

In half log-SNR lam = log(alpha / sigma) the probability-flow ODE is d(x / sigma) / dlam = e^lam x0, so that
x_s = sigma_s / sigma_t x_t + alpha_s int e^(lam - lam_s) x0 dlam (Lu et al. 2022, eq. 9). An order is how many values
of x0 the polynomial under that integral goes through; the integrals are numbers, made once a step in float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gen.diffusion.path import NoisePath, Prediction, expand

__all__ = ["Node", "add", "base", "integrals", "lagrange", "quadrature", "remember", "usable"]


class Node(NamedTuple):
    """One value that a solver remembers, x0 or eps [B, ...], and the half log-SNR it belongs to."""

    lam: float
    value: Tensor


def base(path: NoisePath, x: Tensor, pred: Prediction, t: Tensor) -> Tensor:
    """The x0 [B, ...] that adds up to x with pred.eps: (x - sigma eps) / alpha, or pred.x0 where alpha = 0.

    That is pred.x0, to the bit, unless a guide made a pair (CFG++): what differs by rounding only counts as equal,
    since 1 / alpha would blow it up.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    data, noise = expand(alpha, x) * pred.x0, expand(sigma, x) * pred.eps
    rest = x - data - noise
    rounding = 64 * torch.finfo(x.dtype).eps * (x.abs() + data.abs() + noise.abs())
    inverse = torch.where(alpha > 0, 1 / alpha, torch.zeros_like(alpha))
    return pred.x0 + torch.where(rest.abs() > rounding, expand(inverse, x) * rest, torch.zeros_like(rest))


def usable(here: Node, history: Sequence[Node], order: int) -> tuple[Node, ...]:
    """The newest values, at most `order`, that a polynomial in lam can go through: none at an infinite lam."""
    return tuple(node for node in (here, *history) if math.isfinite(node.lam))[:order] or (here,)


def remember(here: Node, history: Sequence[Node], keep: int) -> tuple[Node, ...]:
    """The history of the next step, newest first."""
    return (here, *history)[:keep]


def add(out: Tensor, weights: Sequence[float], nodes: Sequence[Node]) -> Tensor:
    """out + sum_j weights[j] (value_j - value_0) over all nodes but the first, whose share is in `out` already."""
    for weight, node in zip(weights[1:], nodes[1:], strict=True):
        out = torch.add(out, node.value - nodes[0].value, alpha=weight)
    return out


def integrals(nodes: Sequence[Node], start: float, end: float, rate: float = 1.0) -> list[float]:
    """int_start^end e^(rate (lam - end)) L_j(lam) dlam for each Lagrange polynomial L_j of the nodes' lam."""
    lam, weight = quadrature(start - end, 0.0)
    basis = lagrange(lam, [node.lam - end for node in nodes])
    return (basis * (weight * np.exp(rate * lam))).sum(-1).tolist()


def lagrange(u: np.ndarray, nodes: Sequence[float]) -> np.ndarray:
    """The Lagrange polynomials of the nodes at u [n], float64 [nodes, n]."""
    basis = np.ones((len(nodes), len(u)))
    for j, here in enumerate(nodes):
        for k, other in enumerate(nodes):
            if k != j:
                basis[j] *= (u - other) / (here - other)
    return basis


def quadrature(start: float, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of Gauss's rule from start to end; exact to rounding for e^u over any step of a sampler."""
    points, weights = _gauss()
    return start + (end - start) * points, (end - start) * weights


@functools.cache
def _gauss(n: int = 48) -> tuple[np.ndarray, np.ndarray]:
    points, weights = np.polynomial.legendre.leggauss(n)
    return (points + 1) / 2, weights / 2

"""Activations as their formulas stand.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["gelu_tanh", "rational", "swiglu"]


def swiglu(ab: Tensor) -> Tensor:
    """a sigmoid(a) b, of the halves of the last dimension."""
    a, b = ab.double().chunk(2, -1)
    return (a * a.sigmoid() * b).to(ab.dtype)


def gelu_tanh(x: Tensor, bias: Tensor | None) -> Tensor:
    """h sigmoid(2 sqrt(2 / pi) (h + 0.044715 h^3)) with h = x + bias: half of h times 1 + tanh of half of that."""
    h = x.double() if bias is None else x.double() + bias.double()
    out: Tensor = h * (2 * (2 / math.pi) ** 0.5 * (h + 0.044715 * h**3)).sigmoid()
    return out.to(x.dtype)


def rational(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """sum_i a_i x^i / (1 + sum_j |b_j| |x|^j) of each group of channels."""
    groups = len(denominator)
    wide = x.double().reshape(*x.shape[:-1], groups, -1)  # [..., G, D / G]
    top, low = torch.zeros_like(wide), torch.ones_like(wide)
    for i, a in enumerate(numerator.double().unbind(1)):
        top = top + a[:, None] * wide**i
    for j, b in enumerate(denominator.double().unbind(1), 1):
        low = low + b.abs()[:, None] * wide.abs() ** j
    return (top / low).flatten(-2).to(x.dtype)

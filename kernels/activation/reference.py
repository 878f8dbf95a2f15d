"""Activations as their formulas stand.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gen.kernels.activation.call import GeluCall, RationalCall

__all__ = ["gelu_tanh", "rational", "swiglu"]


def swiglu(ab: Tensor) -> Tensor:
    """Return a sigmoid(a) b, of the halves of the last dimension.

    Args:
        ab: [..., 2 H].
    """
    a, b = ab.double().chunk(2, -1)
    return (a * a.sigmoid() * b).to(ab.dtype)


def gelu_tanh(call: GeluCall) -> Tensor:
    """Return h sigmoid(2 sqrt(2 / pi) (h + 0.044715 h^3)) with h = x + bias; sigmoid(2 u) is (1 + tanh(u)) / 2.

    Args:
        call: the complete arguments.
    """
    h = call.x.double() if call.bias is None else call.x.double() + call.bias.double()
    return (h * (2 * (2 / math.pi) ** 0.5 * (h + 0.044715 * h**3)).sigmoid()).to(call.x.dtype)


def rational(call: RationalCall) -> Tensor:
    """Return sum_i a_i x^i / (1 + sum_j |b_j| |x|^j) of each group of channels.

    Args:
        call: the complete arguments.
    """
    x, numerator, denominator = call
    wide = x.double().reshape(*x.shape[:-1], len(denominator), -1)  # [..., G, D / G]
    top, low = torch.zeros_like(wide), torch.ones_like(wide)
    for i, a in enumerate(numerator.double().unbind(1)):
        top = top + a[:, None] * wide**i
    for j, b in enumerate(denominator.double().unbind(1), 1):
        low = low + b.abs()[:, None] * wide.abs() ** j
    return (top / low).flatten(-2).to(x.dtype)

"""The complete arguments of activations, which every back end is given; swiglu's is its one tensor."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["GeluCall", "RationalCall"]


class GeluCall(NamedTuple):
    """GELU(x + bias) in its tanh form.

    Attributes:
        x: [..., D].
        bias: [D] or None.
    """

    x: Tensor
    bias: Tensor | None


class RationalCall(NamedTuple):
    """sum_i a_i x^i / (1 + sum_j |b_j| |x|^j) of each of G groups of channels.

    Attributes:
        x: [..., D].
        numerator: a from a_0, [1 or G, m + 1].
        denominator: b from b_1, [G, n].
    """

    x: Tensor
    numerator: Tensor
    denominator: Tensor

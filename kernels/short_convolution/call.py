"""The complete arguments of a short convolution, which every back end is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["ShortConvolutionCall"]


class ShortConvolutionCall(NamedTuple):
    """bias + sum over k of weight_k times the token that is visited taps - 1 - k visits before.

    Attributes:
        u: [B, T, H].
        weight: [H, taps].
        bias: [H].
        order: int64 [T], the tokens in the order of visits, or None for the first to the last.
        reverse: visits them the other way round.
    """

    u: Tensor
    weight: Tensor
    bias: Tensor
    order: Tensor | None
    reverse: bool

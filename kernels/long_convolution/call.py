"""The complete arguments of a long convolution, which every back end is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["LongConvolutionCall"]


class LongConvolutionCall(NamedTuple):
    """y_t = sum over s of K_s u_(t-s) of every channel.

    Attributes:
        u: [B, T, H].
        K: [H, T], or [H, 2 T], whose last T - 1 numbers are those of s = -(T - 1) ... -1.
    """

    u: Tensor
    K: Tensor

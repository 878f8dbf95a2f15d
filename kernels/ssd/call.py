"""The complete arguments of ssd, which every back end is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["SSDCall"]


class SSDCall(NamedTuple):
    """y_t = C_t h_t with h_t = exp(delta_t A) h_(t-1) + delta_t B_t x_t^T in every head.

    Attributes:
        x: [b, T, H, P].
        delta: [b, T, H].
        A: [H].
        B, C: [b, T, G, N]; G divides H.
    """

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor

"""The complete arguments of a selective scan, which every back end is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["SelectiveScanCall"]


class SelectiveScanCall(NamedTuple):
    """y_t = C_t . h_t with h_t = exp(delta_t A) h_(t-1) + delta_t B_t u_t.

    Attributes:
        u, delta: [b, T, D].
        A: [D, N].
        B, C: [b, T, N].
        order: int64 [T], the tokens as the scan visits them, or None for the first to the last.
        reverse: visits them the other way round.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    order: Tensor | None
    reverse: bool

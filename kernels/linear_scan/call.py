"""The complete arguments of a linear scan, which every back end is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["LinearScanCall"]


class LinearScanCall(NamedTuple):
    """h_t = a_t h_(t-1) + b_t over dimension 1; in reverse h_t = a_(t+1) h_(t+1) + b_t.

    Attributes:
        a: [B, T, ...], or 1 instead of any size but T's; real or complex.
        b: [B, T, ...].
        start: h_(-1) [B, ...], or None for zero; None in reverse.
        reverse: from the last to the first.
    """

    a: Tensor
    b: Tensor
    start: Tensor | None
    reverse: bool

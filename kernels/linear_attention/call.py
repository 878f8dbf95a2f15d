"""The complete arguments of linear attention, which every back end is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["LinearAttentionCall"]


class LinearAttentionCall(NamedTuple):
    """q_t S with S = sum_s softmax_s(k) v_s^T.

    Attributes:
        q, k: [B, H, T, d].
        v: [B, H, T, e].
    """

    q: Tensor
    k: Tensor
    v: Tensor

"""The complete arguments of gated_linear_attention, which every back end is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["GLACall"]


class GLACall(NamedTuple):
    """o_t = scale q_t S_t with S_t = diag(exp g_t) S_(t-1) + k_t v_t^T in every head.

    Attributes:
        q, k, g: [B, T, H, d].
        v: [B, T, H, e].
        scale: a number.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    scale: float

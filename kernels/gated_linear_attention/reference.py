"""Gated linear attention, token by token.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.gated_linear_attention.call import GLACall

__all__ = ["gated_linear_attention"]


def gated_linear_attention(call: GLACall) -> Tensor:
    """Return o_t = scale q_t S_t of the states S_t = diag(exp g_t) S_(t-1) + k_t v_t^T of every head.

    Args:
        call: the complete arguments.
    """
    q, k, v, g = (x.double() for x in call[:4])
    state = k.new_zeros(*k.shape[:1], *k.shape[2:], v.shape[-1])  # [B, H, d, e]
    outs = []
    for t in range(q.shape[1]):
        state = g[:, t, :, :, None].exp() * state + k[:, t, :, :, None] * v[:, t, :, None]
        outs.append(call.scale * (q[:, t, :, None] @ state).squeeze(2))
    return torch.stack(outs, 1).to(call.v.dtype)

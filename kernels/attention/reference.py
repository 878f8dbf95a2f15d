"""Attention as its formula stands.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.attention.call import AttentionCall
from gen.kernels.rope.call import NormRopeCall
from gen.kernels.rope.reference import norm_rope

__all__ = ["attention"]


def attention(call: AttentionCall) -> Tensor:
    """Return softmax(scale q k^T, over the allowed keys) v, q and k after their norm and rotation; rounded once.

    Args:
        call: the complete arguments.
    """
    # Each [B, heads, N, d].
    q, k, v = (t.double() for t in (call.q, call.k, call.v))
    if call.needs_norm_rope:
        q = norm_rope(NormRopeCall(q, call.q_gain, call.eps, call.cos, call.sin, call.pairs))
        k = norm_rope(NormRopeCall(k, call.k_gain, call.eps, call.cos, call.sin, call.pairs))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    allowed = call.allowed()
    allowed = allowed if allowed.ndim == 2 else allowed[:, None]  # [Nq, Nk] or [B or 1, 1, Nq, Nk]
    score = (call.scale * q @ k.mT).masked_fill(~allowed, -torch.inf)
    top = score.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(score.dtype).min)
    weight = (score - top).exp()
    total = weight.sum(-1, keepdim=True)
    out = (weight / total.where(total > 0, 1)) @ v
    return out.transpose(1, 2).to(call.q.dtype)  # [B, Nq, H, d]

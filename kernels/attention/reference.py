"""Attention as its formula stands.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.attention.rules import Rule
from gen.kernels.rope.reference import norm_rope

__all__ = ["attention", "attention_qkv"]


def attention(
    qkv: Tensor,
    rule: Rule,
    scale: float,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    eps: float,
    cos: Tensor | None,
    sin: Tensor | None,
    pairs: str,
) -> Tensor:
    """attention_qkv of the three parts, q and k after norm_rope, rounded once."""
    q, k, v = qkv.double().unbind(2)
    q, k = norm_rope(q, q_gain, eps, cos, sin, pairs), norm_rope(k, k_gain, eps, cos, sin, pairs)
    return attention_qkv(q, k, v, rule, scale, None, 0).to(qkv.dtype)


def attention_qkv(q: Tensor, k: Tensor, v: Tensor, rule: Rule, scale: float, seen: Tensor | None, first: int) -> Tensor:
    """softmax(scale q k^T, over the keys that rule and seen allow) v; a query that sees nothing gets 0."""
    group = q.shape[2] // k.shape[2]
    q_, k_, v_ = (t.double().transpose(1, 2) for t in (q, k, v))  # each [B, heads, places, d]
    k_, v_ = k_.repeat_interleave(group, 1), v_.repeat_interleave(group, 1)
    place = torch.arange(first, first + q.shape[1], device=q.device)
    allowed = rule.allowed(place[:, None], torch.arange(k.shape[1], device=q.device))  # [Nq, Nk]
    if seen is not None:
        allowed = allowed & seen[:, None]  # [B or 1, 1, Nq, Nk]
    score = (scale * q_ @ k_.mT).masked_fill(~allowed, -torch.inf)
    top = score.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(score.dtype).min)
    weight = (score - top).exp()
    total = weight.sum(-1, keepdim=True)
    out: Tensor = (weight / total.where(total > 0, 1)) @ v_
    return out.transpose(1, 2).to(q.dtype)  # [B, Nq, H, d]

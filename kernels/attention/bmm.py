"""Attention as two products by oneDNN, a few heads at a time: what a CPU with bfloat16 products does fastest.

PyTorch's own kernel for the CPU multiplies small tiles, at a third of the rate of whole heads. Scores are rounded to
bfloat16 on the way, as in the formula written out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.attention.rules import Bidirectional, Rule
from gen.kernels.lib import triton as _triton
from gen.kernels.rope import Pairs, prepared

__all__ = ["refuses", "run"]

SCORES = 2**19  # numbers at a time: 1 MiB, which stays in a core's cache and in the allocator's hands
PLACES = (64, 2048)  # fewer are faster in PyTorch's kernel; the scores of more leave the cache


def refuses(
    qkv: Tensor,
    rule: Rule,
    scale: float,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    eps: float,
    cos: Tensor | None,
    sin: Tensor | None,
    pairs: Pairs,
) -> str | None:
    if qkv.device.type != "cpu" or qkv.dtype != torch.bfloat16:
        return "it is for bfloat16 on a CPU"
    if not isinstance(rule, Bidirectional):
        return f"it has no {type(rule).__name__}"
    if not PLACES[0] <= qkv.shape[1] <= PLACES[1]:
        return f"{qkv.shape[1]} places; it is for {PLACES[0]} to {PLACES[1]}"
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (qkv, q_gain, k_gain)):
        return "a gradient is asked for, and all scores would be kept"
    if torch.compiler.is_compiling():
        return "a compiled graph would have a part for every few heads"
    return _triton.transformed(qkv, q_gain, k_gain)


def run(
    qkv: Tensor,
    rule: Rule,
    scale: float,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    eps: float,
    cos: Tensor | None,
    sin: Tensor | None,
    pairs: Pairs,
) -> Tensor:
    b, n, _, heads, d = qkv.shape
    each = max(1, SCORES // n**2)
    q, k, v = (t.transpose(1, 2).reshape(b * heads, n, d) for t in prepared(qkv, q_gain, k_gain, eps, cos, sin, pairs))
    out, nothing = torch.empty_like(q), q.new_zeros(())
    for i in range(0, b * heads, each):
        some = slice(i, i + each)
        weights = torch.baddbmm(nothing, q[some], k[some].mT, beta=0, alpha=scale).softmax(-1)
        torch.bmm(weights, v[some], out=out[some])
    return out.view(b, heads, n, d).transpose(1, 2)  # [B, N, H, d]

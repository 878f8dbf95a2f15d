"""Attention as two products by oneDNN, a few heads at a time: what a CPU with bfloat16 products does fastest.

PyTorch's own kernel for the CPU multiplies small tiles, at a third of the rate of whole heads. Scores are rounded to
bfloat16 on the way, as in the formula written out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.attention.call import AttentionCall
from gen.kernels.attention.rules import Bidirectional
from gen.kernels.lib.autograd import transform_reason

__all__ = ["incompatible_reason", "run"]

SCORES = 2**19  # numbers at a time: 1 MiB, which stays in a core's cache and in the allocator's hands
SHORTEST, LONGEST = 64, 2048  # fewer positions are faster in PyTorch's kernel; the scores of more leave the cache


def incompatible_reason(call: AttentionCall) -> str | None:
    """Return why the call is better computed otherwise, or None."""
    qkv = call.qkv
    if qkv is None:
        return "q, k and v are not packed"
    if qkv.device.type != "cpu" or qkv.dtype != torch.bfloat16:
        return "it is for bfloat16 on a CPU"
    if not isinstance(call.rule, Bidirectional):
        return f"it has no {type(call.rule).__name__}"
    if not SHORTEST <= qkv.shape[1] <= LONGEST:
        return f"{qkv.shape[1]} positions; it is for {SHORTEST} to {LONGEST}"
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (qkv, call.q_gain, call.k_gain)):
        return "a gradient is needed, and all scores would be kept"
    if torch.compiler.is_compiling():
        return "a compiled graph would have a part for every few heads"
    return transform_reason(qkv, call.q_gain, call.k_gain)


def run(call: AttentionCall) -> Tensor:
    """Compute the scores of some heads at a time."""
    b, n, heads, d = call.q.shape
    each = max(1, SCORES // n**2)
    call = call.after_norm_rope()
    q, k, v = (t.transpose(1, 2).reshape(b * heads, n, d) for t in (call.q, call.k, call.v))
    out, zero = torch.empty_like(q), q.new_zeros(())
    for i in range(0, b * heads, each):
        some = slice(i, i + each)
        weights = torch.baddbmm(zero, q[some], k[some].mT, beta=0, alpha=call.scale).softmax(-1)
        torch.bmm(weights, v[some], out=out[some])
    return out.view(b, heads, n, d).transpose(1, 2)  # [B, N, H, d]

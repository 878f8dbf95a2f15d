"""Attention by xformers. It imports where its kernels cannot run, so one tiny call is tried first."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from gen.kernels.attention.call import AttentionCall
from gen.kernels.attention.rules import Bidirectional, Causal

__all__ = ["incompatible_reason", "run"]


def incompatible_reason(call: AttentionCall) -> str | None:
    """Return why xformers cannot compute the call, or None."""
    q, k, rule = call.q, call.k, call.rule
    if call.documents is not None:
        return "it has no documents without a mask of N x N"
    if call.attn_mask is not None:
        return "it has no mask without a bias of float for every head"
    if q.shape[2] != k.shape[2]:
        return "shared heads would be copied"
    if isinstance(rule, Causal) and (call.start_pos != 0 or q.shape[1] != k.shape[1]):
        return "its causal mask starts at one position for both"
    if not isinstance(rule, Bidirectional | Causal):
        return f"it has no {type(rule).__name__} without a mask of N x N"
    if torch.compiler.is_compiling():
        return "its operators break a compiled graph"
    return _failure(q.device.type, q.dtype, q.shape[-1])


def run(call: AttentionCall) -> Tensor:
    """Compute the attention; q, k and v may lie in any layout."""
    import xformers.ops

    call = call.after_norm_rope()
    bias = xformers.ops.LowerTriangularMask() if isinstance(call.rule, Causal) else None
    return xformers.ops.memory_efficient_attention(call.q, call.k, call.v, attn_bias=bias, scale=call.scale)


@cache
def _failure(device: str, dtype: torch.dtype, dim: int) -> str | None:
    """Return why a call of this kind fails; None if it works, gradient and all."""
    try:
        import xformers.ops as ops
    except ImportError:
        return "xformers is not installed; pip install 'gen-diffusion[xformers]'"
    with torch.enable_grad():
        one = torch.zeros(1, 8, 1, dim, device=device, dtype=dtype, requires_grad=True)
        try:
            ops.memory_efficient_attention(one, one, one).sum().backward()
        except (NotImplementedError, RuntimeError, ValueError) as error:
            what = str(error).strip().splitlines()[0].rstrip(" :")
            return f"a call on {device} with {dtype} and head dim {dim} fails: {what}"
    return None

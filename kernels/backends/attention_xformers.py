"""Attention by xformers. It imports where its kernels cannot run, so one tiny call is tried first."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from gen.kernels.rules import Bidirectional, Causal, Rule

__all__ = ["refuses", "run"]


def refuses(qkv: Tensor, rule: Rule, scale: float) -> str | None:
    if not isinstance(rule, Bidirectional | Causal):
        return f"it has no {type(rule).__name__} without a mask of N x N"
    if torch.compiler.is_compiling():
        return "its operators break a compiled graph"
    return _probe(qkv.device.type, qkv.dtype, qkv.shape[-1])


def run(qkv: Tensor, rule: Rule, scale: float) -> Tensor:
    import xformers.ops

    q, k, v = qkv.unbind(2)  # views: each [B, N, H, d], its own layout
    bias = xformers.ops.LowerTriangularMask() if isinstance(rule, Causal) else None
    out: Tensor = xformers.ops.memory_efficient_attention(q, k, v, attn_bias=bias, scale=scale)
    return out


@cache
def _probe(device: str, dtype: torch.dtype, dim: int) -> str | None:
    """Why a call of this kind fails; None if it works, gradient and all."""
    try:
        import xformers.ops as ops
    except ImportError:
        return "xformers is not installed; pip install 'gen[xformers]'"
    with torch.enable_grad():
        one: Any = torch.zeros(1, 8, 1, dim, device=device, dtype=dtype, requires_grad=True)
        try:
            ops.memory_efficient_attention(one, one, one).sum().backward()
        except (NotImplementedError, RuntimeError, ValueError) as error:
            what = str(error).strip().splitlines()[0].rstrip(" :")
            return f"a call on {device} with {dtype} and head dim {dim} fails: {what}"
    return None

"""Attention by xformers. It imports where its kernels cannot run, so one tiny call is tried first."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from gen.kernels.attention.rules import Bidirectional, Causal, Rule
from gen.kernels.rope import Pairs, prepared

__all__ = ["refuses", "refuses_qkv", "run", "run_qkv"]


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
    return _unable(qkv, rule)


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
    q, k, v = prepared(qkv, q_gain, k_gain, eps, cos, sin, pairs)  # each [B, N, H, d], its own layout
    return run_qkv(q, k, v, rule, scale, None, 0)


def refuses_qkv(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule, scale: float, seen: Tensor | None, first: int
) -> str | None:
    if seen is not None:
        return "it has no mask without a bias of float for every head"
    if q.shape[2] != k.shape[2]:
        return "shared heads would be copied"
    if isinstance(rule, Causal) and (first != 0 or q.shape[1] != k.shape[1]):
        return "its causal mask is of one place for both"
    return _unable(q, rule)


def run_qkv(q: Tensor, k: Tensor, v: Tensor, rule: Rule, scale: float, seen: Tensor | None, first: int) -> Tensor:
    import xformers.ops

    bias = xformers.ops.LowerTriangularMask() if isinstance(rule, Causal) else None
    return xformers.ops.memory_efficient_attention(q, k, v, attn_bias=bias, scale=scale)


def _unable(x: Tensor, rule: Rule) -> str | None:
    if not isinstance(rule, Bidirectional | Causal):
        return f"it has no {type(rule).__name__} without a mask of N x N"
    if torch.compiler.is_compiling():
        return "its operators break a compiled graph"
    return _probe(x.device.type, x.dtype, x.shape[-1])


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

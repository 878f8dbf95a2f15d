"""Attention by PyTorch's FlexAttention, compiled, with a block mask of what the rule allows."""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from gen.kernels.attention.rules import Bidirectional, Rule
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
    return _unable(qkv, q_gain, k_gain)


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
    q, k, v = prepared(qkv, q_gain, k_gain, eps, cos, sin, pairs)
    return run_qkv(q, k, v, rule, scale, None, 0)


def refuses_qkv(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule, scale: float, seen: Tensor | None, first: int
) -> str | None:
    if seen is not None:
        return "a mask that is no rule would need a block mask of its own for every call"
    return _unable(q, k, v)


def run_qkv(q: Tensor, k: Tensor, v: Tensor, rule: Rule, scale: float, seen: Tensor | None, first: int) -> Tensor:
    compiling = torch.compiler.is_compiling()
    mask = None
    if not isinstance(rule, Bidirectional):
        # A cache inside of a graph that is being traced would be ignored, with a warning.
        make: Any = _block_mask.__wrapped__ if compiling else _block_mask
        mask = make(rule, q.shape[1], k.shape[1], first, q.device)
    shared = q.shape[2] not in (k.shape[2],)  # of symbols in a graph != would be a symbol
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # views: each [B, heads, places, d]
    out: Tensor = _flex(compiling)(q, k, v, block_mask=mask, scale=scale, enable_gqa=shared)
    return out.transpose(1, 2)


def _unable(x: Tensor, *others: Tensor | None) -> str | None:
    if x.device.type not in ("cpu", "cuda"):
        return f"no FlexAttention on {x.device.type}"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no FlexAttention of {x.dtype}"
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *others))
    return "FlexAttention has no gradient on cpu" if x.device.type == "cpu" and wanted else None


def _flex(compiling: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if compiling else _compiled()


@cache
def _compiled() -> Any:
    """Uncompiled it would hold all scores in memory."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@lru_cache(maxsize=256)  # a cache of keys and values has another shape with every step
def _block_mask(rule: Rule, nq: int, nk: int, first: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, q, k: rule.allowed(q + first, k), None, None, nq, nk, device=device)

"""Attention by PyTorch's FlexAttention, compiled, with a block mask of what the rule allows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gen.kernels.attention.call import AttentionCall
from gen.kernels.attention.rules import Bidirectional, MaskRule

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["incompatible_reason", "run"]


def incompatible_reason(call: AttentionCall) -> str | None:
    """Return why FlexAttention cannot compute the call, or None."""
    device, dtype = call.q.device.type, call.q.dtype
    if call.attn_mask is not None:
        return "a mask that is no rule would need a block mask of its own for every call"
    if device not in ("cpu", "cuda"):
        return f"no FlexAttention on {device}"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no FlexAttention of {dtype}"
    given = (call.q, call.k, call.v, call.q_gain, call.k_gain)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    return "FlexAttention has no gradient on cpu" if device == "cpu" and wanted else None


def run(call: AttentionCall) -> Tensor:
    """Compute the attention under a block mask."""
    call, compiling = call.after_norm_rope(), torch.compiler.is_compiling()
    mask = None
    if not isinstance(call.rule, Bidirectional):
        # A cache inside of a graph that is being traced would be ignored, with a warning.
        make = _block_mask.__wrapped__ if compiling else _block_mask
        mask = make(call.rule, call.q.shape[1], call.k.shape[1], call.start_pos, call.q.device)
    shared = call.q.shape[2] not in (call.k.shape[2],)  # of symbols in a graph != would be a symbol
    q, k, v = (t.transpose(1, 2) for t in (call.q, call.k, call.v))  # views: each [B, heads, N, d]
    return _flex(compiling)(q, k, v, block_mask=mask, scale=call.scale, enable_gqa=shared).transpose(1, 2)


def _flex(compiling: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    attend: Callable[..., Tensor] = flex_attention
    return attend if compiling else _compiled()


@cache
def _compiled() -> Callable[..., Tensor]:
    """Uncompiled it would hold all scores in memory."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@lru_cache(maxsize=256)  # a cache of keys and values has another shape with every step
def _block_mask(rule: MaskRule, nq: int, nk: int, start: int, device: torch.device) -> BlockMask:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, q, k: rule.allowed(q + start, k), None, None, nq, nk, device=device)

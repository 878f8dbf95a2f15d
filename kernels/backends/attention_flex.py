"""Attention by PyTorch's FlexAttention, compiled, with a block mask of what the rule allows."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from gen.kernels.rules import Bidirectional, Rule

__all__ = ["refuses", "run"]


def refuses(qkv: Tensor, rule: Rule, scale: float) -> str | None:
    if qkv.device.type not in ("cpu", "cuda"):
        return f"no FlexAttention on {qkv.device.type}"
    if qkv.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"no FlexAttention of {qkv.dtype}"
    if qkv.device.type == "cpu" and qkv.requires_grad and torch.is_grad_enabled():
        return "FlexAttention has no gradient on cpu"
    return None


def run(qkv: Tensor, rule: Rule, scale: float) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # views: each [B, H, N, d]
    compiling = torch.compiler.is_compiling()
    mask = None
    if not isinstance(rule, Bidirectional):
        # A cache inside of a graph that is being traced would be ignored, with a warning.
        make: Any = _block_mask.__wrapped__ if compiling else _block_mask
        mask = make(rule, q.shape[2], qkv.device)
    out: Tensor = _flex(compiling)(q, k, v, block_mask=mask, scale=scale)
    return out.transpose(1, 2)


def _flex(compiling: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if compiling else _compiled()


@cache
def _compiled() -> Any:
    """Uncompiled it would hold all scores in memory."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@cache
def _block_mask(rule: Rule, n: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, q, k: rule.allowed(q, k), None, None, n, n, device=device)

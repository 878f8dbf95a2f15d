"""Attention by PyTorch's scaled_dot_product_attention, which picks a kernel of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from gen.kernels.rules import Bidirectional, Causal, Rule

__all__ = ["detail", "refuses", "run"]

KERNELS = {
    SDPBackend.MATH: "plain products",
    SDPBackend.FLASH_ATTENTION: "flash attention",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient attention",
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
}


def refuses(qkv: Tensor, rule: Rule, scale: float) -> str | None:
    if qkv.device.type != "cpu" and not isinstance(rule, Bidirectional | Causal):
        return f"on {qkv.device.type} {type(rule).__name__} would be a mask of N x N, and all of it computed"
    return None


def run(qkv: Tensor, rule: Rule, scale: float) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # views: each [B, H, N, d]
    mask, causal = _mask(qkv, rule), isinstance(rule, Causal)
    # In PyTorch 1 / sqrt(d) and no scale at all are the same number, but not always the same kernel.
    given = None if scale == qkv.shape[-1] ** -0.5 else scale
    return scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=given).transpose(1, 2)


def detail(qkv: Tensor, rule: Rule, scale: float) -> str:
    """The kernel that PyTorch would pick."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    picked = torch._fused_sdp_choice(q, k, v, _mask(qkv, rule), is_causal=isinstance(rule, Causal), scale=scale)
    return KERNELS.get(SDPBackend(picked), f"kernel {picked}")


def _mask(qkv: Tensor, rule: Rule) -> Tensor | None:
    """bool [N, N], True where one may look; None for the rules that need no matrix."""
    if isinstance(rule, Bidirectional | Causal):
        return None
    place = torch.arange(qkv.shape[1], device=qkv.device)
    return rule.allowed(place[:, None], place)

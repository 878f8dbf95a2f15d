"""Attention by PyTorch's scaled_dot_product_attention, which picks a kernel of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from gen.kernels.attention.call import AttentionCall
from gen.kernels.attention.rules import Bidirectional, Causal
from gen.kernels.rope import norm_rope

__all__ = ["detail", "incompatible_reason", "run"]

KERNELS = {
    SDPBackend.MATH: "plain products",
    SDPBackend.FLASH_ATTENTION: "flash attention",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient attention",
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
}


class Arguments(NamedTuple):
    """scaled_dot_product_attention's: q [B, H, Nq, d], k and v [B, H or Hkv, Nk, d], a bool mask, ..."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    is_causal: bool
    enable_gqa: bool


def incompatible_reason(call: AttentionCall) -> str | None:
    """Return why PyTorch would compute or copy much more than is needed, or None."""
    device, rule = call.q.device.type, call.rule
    if device != "cpu" and call.attn_mask is not None and call.q.shape[2] != call.k.shape[2]:
        return f"on {device} it has no kernel of shared heads under a mask: all would be copied"
    if device == "cpu":
        return None
    if call.documents is not None:
        return f"on {device} documents would be a mask of N x N"
    if isinstance(rule, Bidirectional) or (isinstance(rule, Causal) and call.start_pos == 0):
        return None
    return f"on {device} {type(rule).__name__} would be a mask of N x N, and all of it computed"


def run(call: AttentionCall) -> Tensor:
    """Compute the attention under a dense mask, if the rule needs one."""
    given = _arguments(call.after_norm_rope())
    # In PyTorch 1 / sqrt(d) and no scale at all are the same number, but not always the same kernel.
    scale = None if call.scale == call.q.shape[-1] ** -0.5 else call.scale
    q, k, v, mask, causal, shared = given
    return scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=shared).transpose(1, 2)


def detail(call: AttentionCall) -> str:
    """Return the kernel that PyTorch would pick, and what norms and rotates q and k before it."""
    q, k, v, mask, causal, shared = _arguments(call)
    choice = torch._fused_sdp_choice(q, k, v, mask, is_causal=causal, scale=call.scale, enable_gqa=shared)
    kernel = KERNELS.get(SDPBackend(choice), f"kernel {choice}")
    if not call.needs_norm_rope:
        return kernel
    gain = call.k_gain if call.q_gain is None else call.q_gain
    answers = norm_rope.explain(call.q, gain, call.eps, call.cos, call.sin, call.pairs)
    chosen = next(name for name, answer in answers.items() if answer.startswith("chosen"))
    return f"{kernel}, after norm_rope by {chosen}"


def _arguments(call: AttentionCall) -> Arguments:
    q, k, v = (t.transpose(1, 2) for t in (call.q, call.k, call.v))  # views
    shared = q.shape[1] not in (k.shape[1],)  # of symbols in a graph != would be a symbol
    rule, mask = call.rule, call.attn_mask
    if isinstance(rule, Bidirectional) and call.documents is None:
        mask = None if mask is None else mask[:, None]
    elif isinstance(rule, Causal) and call.start_pos == 0 and mask is None and call.documents is None:
        return Arguments(q, k, v, None, True, shared)
    else:
        mask = call.allowed()
        mask = mask if mask.ndim == 2 else mask[:, None]
    if mask is not None and shared:  # no fast kernel takes both: one head of k and v for each of q's
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        shared = False
    return Arguments(q, k, v, mask, False, shared)

"""Attention by PyTorch's scaled_dot_product_attention, which picks a kernel of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from gen.kernels.attention.rules import Bidirectional, Causal, Rule
from gen.kernels.rope import Pairs, norm_rope, prepared

__all__ = ["detail", "detail_qkv", "refuses", "refuses_qkv", "run", "run_qkv"]

KERNELS = {
    SDPBackend.MATH: "plain products",
    SDPBackend.FLASH_ATTENTION: "flash attention",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient attention",
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
}


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
    return _too_dense(qkv, rule, 0)


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
    if q_gain is None and k_gain is None and cos is None:
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # views: each [B, H, N, d]
    else:
        q, k, v = (t.transpose(1, 2) for t in prepared(qkv, q_gain, k_gain, eps, cos, sin, pairs))
    return _run(q, k, v, rule, scale, None, 0)


def detail(
    qkv: Tensor,
    rule: Rule,
    scale: float,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    eps: float,
    cos: Tensor | None,
    sin: Tensor | None,
    pairs: Pairs,
) -> str:
    """The kernel that PyTorch would pick, and what prepares q and k for it."""
    q, k, v = qkv.unbind(2)
    picked = detail_qkv(q, k, v, rule, scale, None, 0)
    if q_gain is None and k_gain is None and cos is None:
        return picked
    before = norm_rope.verdicts(q, k_gain if q_gain is None else q_gain, eps, cos, sin, pairs)
    return f"{picked}, after norm_rope by {next(name for name, said in before.items() if said.startswith('chosen'))}"


def refuses_qkv(
    q: Tensor, k: Tensor, v: Tensor, rule: Rule, scale: float, seen: Tensor | None, first: int
) -> str | None:
    if q.device.type != "cpu" and seen is not None and q.shape[2] != k.shape[2]:
        return f"on {q.device.type} it has no kernel of shared heads under a mask: all would be copied"
    return _too_dense(q, rule, first)


def run_qkv(q: Tensor, k: Tensor, v: Tensor, rule: Rule, scale: float, seen: Tensor | None, first: int) -> Tensor:
    return _run(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), rule, scale, seen, first)


def detail_qkv(q: Tensor, k: Tensor, v: Tensor, rule: Rule, scale: float, seen: Tensor | None, first: int) -> str:
    """The kernel that PyTorch would pick."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    mask, causal, shared = _how(q, k, rule, seen, first)
    if mask is not None and shared:
        k, v, shared = _copied(k, q), _copied(v, q), False
    picked = torch._fused_sdp_choice(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=shared)
    return KERNELS.get(SDPBackend(picked), f"kernel {picked}")


def _too_dense(q: Tensor, rule: Rule, first: int) -> str | None:
    if q.device.type == "cpu" or isinstance(rule, Bidirectional) or (isinstance(rule, Causal) and first == 0):
        return None
    return f"on {q.device.type} {type(rule).__name__} would be a mask of N x N, and all of it computed"


def _run(q: Tensor, k: Tensor, v: Tensor, rule: Rule, scale: float, seen: Tensor | None, first: int) -> Tensor:
    """q [B, H, Nq, d], k and v [B, Hkv, Nk, d] -> [B, Nq, H, d]."""
    mask, causal, shared = _how(q, k, rule, seen, first)
    if mask is not None and shared:  # no fast kernel takes both
        k, v, shared = _copied(k, q), _copied(v, q), False
    # In PyTorch 1 / sqrt(d) and no scale at all are the same number, but not always the same kernel.
    given = None if scale == q.shape[-1] ** -0.5 else scale
    return scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=given, enable_gqa=shared).transpose(1, 2)


def _copied(k: Tensor, q: Tensor) -> Tensor:
    """One head for each of q's."""
    return k.repeat_interleave(q.shape[1] // k.shape[1], 1)


def _how(q: Tensor, k: Tensor, rule: Rule, seen: Tensor | None, first: int) -> tuple[Tensor | None, bool, bool]:
    """The mask, if one is needed, True where one may look; whether PyTorch's causal one; whether heads are shared."""
    shared = q.shape[1] not in (k.shape[1],)  # of symbols in a graph != would be a symbol
    if isinstance(rule, Bidirectional):
        return None if seen is None else seen[:, None], False, shared
    if isinstance(rule, Causal) and first == 0 and seen is None:
        return None, True, shared
    place = torch.arange(first, first + q.shape[2], device=q.device)
    mask = rule.allowed(place[:, None], torch.arange(k.shape[2], device=q.device))  # [Nq, Nk]
    return mask if seen is None else mask & seen[:, None], False, shared

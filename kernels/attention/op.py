"""Attention under a mask rule, over packed q, k and v or over three with lengths and heads of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.attention import (
    bmm,
    flex_attention,
    reference,
    sdpa,
    tiles,
    triton_launch,
    xformers_attention,
)
from gen.kernels.attention.call import AttentionCall
from gen.kernels.attention.rules import BIDIRECTIONAL, MaskRule
from gen.kernels.dispatch import Backend, op
from gen.kernels.rope import Pairs, check_norm_rope

__all__ = ["attention", "packed_attention"]

# First what a CPU does fastest; then what PyTorch has for the rule; then, on a GPU, what skips the tiles that a rule
# forbids; then what is dense; then the formula itself.
BACKENDS = (
    Backend("bmm", bmm.run, bmm.incompatible_reason),
    Backend("tiles", tiles.run, tiles.incompatible_reason),
    Backend("sdpa", sdpa.run, sdpa.incompatible_reason, sdpa.detail),
    Backend("triton", triton_launch.run, triton_launch.incompatible_reason),
    Backend("flex", flex_attention.run, flex_attention.incompatible_reason),
    Backend("xformers", xformers_attention.run, xformers_attention.incompatible_reason),
    Backend("dense", sdpa.run),
    Backend("reference", reference.attention),
)


@op(*BACKENDS)
def packed_attention(
    qkv: Tensor,
    rule: MaskRule = BIDIRECTIONAL,
    scale: float | None = None,
    q_gain: Tensor | None = None,
    k_gain: Tensor | None = None,
    eps: float = 1e-6,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    pairs: Pairs = "adjacent",
) -> AttentionCall:
    """Compute softmax(scale q k^T) v of every head of packed q, k and v.

    Args:
        qkv: [B, N, 3, H, d], as one product of a linear layer lays it out; read as it lies, never copied or permuted.
        rule: which positions attend to which; all to all by default.
        scale: factor of q k^T; 1 / sqrt(d) by default.
        q_gain, k_gain: gains [d]; q and k are divided by their root mean square over d and multiplied by these. None:
            no norm.
        eps: added to the mean square.
        cos, sin: tables of the rotary embedding [N, d] or [B or 1, N, d], applied after the norm; as in norm_rope.
        pairs: which channels rotate together, as in norm_rope.

    Returns:
        [B, N, H, d]; 0 for a query that attends to no key.

    Raises:
        ValueError: for other shapes, and for a rule that is defined for another number of positions.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"packed_attention: qkv is {list(qkv.shape)}; it must be [B, N, 3, H, d]")
    b, n, _, _, d = qkv.shape
    reason = rule.incompatible_reason(n)
    if reason is not None:
        raise ValueError(f"packed_attention: qkv has {n} positions; {reason}")
    if q_gain is not None or k_gain is not None or cos is not None or sin is not None:
        check_norm_rope("packed_attention", b, n, d, (q_gain, k_gain), cos, sin, pairs)
    (q, k, v), scale = qkv.unbind(2), d**-0.5 if scale is None else scale
    return AttentionCall(q, k, v, rule, scale, None, 0, q_gain, k_gain, eps, cos, sin, pairs, qkv)


@op(*BACKENDS)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rule: MaskRule = BIDIRECTIONAL,
    scale: float | None = None,
    attn_mask: Tensor | None = None,
    start_pos: int = 0,
    documents: Tensor | None = None,
) -> AttentionCall:
    """Compute softmax(scale q k^T) v of every head, k and v with a length of their own and perhaps with fewer heads.

    Head h of q reads head h Hkv / H of k and v, rounded down: grouped queries (Ainslie et al. 2023, arXiv 2305.13245).

    Args:
        q: queries [B, Nq, H, d].
        k, v: keys and values [B, Nk, Hkv, d], positions 0 ... Nk - 1 of the rule; Hkv divides H.
        rule: which positions attend to which; all to all by default.
        scale: factor of q k^T; 1 / sqrt(d) by default.
        attn_mask: bool [B or 1, Nq or 1, Nk], which keys may be attended to where the rule allows it too.
        start_pos: position of the first query: Nk - Nq where the queries are the newest of a cache.
        documents: int64 [B or 1, N], N = max(Nk, start_pos + Nq): the document of each position, such as of several
            texts in one window, or of padding. A query attends to keys of its own alone; None for one document.

    Returns:
        [B, Nq, H, d]; 0 for a query that attends to no key.

    Raises:
        ValueError: for other shapes, and for a rule that is defined for another number of positions.
    """
    if q.ndim != 4 or k.ndim != 4 or v.shape != k.shape:
        given = ", ".join(f"{name} {list(t.shape)}" for name, t in (("q", q), ("k", k), ("v", v)))
        raise ValueError(f"attention: given {given}; they must be [B, Nq, H, d] and twice [B, Nk, Hkv, d]")
    (b, nq, h, d), (b_k, nk, h_k, d_k) = q.shape, k.shape
    if b != b_k or d != d_k or h % h_k:
        raise ValueError(
            f"attention: q is {[b, nq, h, d]}, k and v {[b_k, nk, h_k, d_k]}; "
            "B and d must be the same, and H a multiple of Hkv"
        )
    if attn_mask is not None:
        _check_mask(attn_mask, b, nq, nk)
    if start_pos < 0:
        raise ValueError(f"attention: start_pos is {start_pos}; it must be at least 0")
    n = max(nk, start_pos + nq)
    reason = rule.incompatible_reason(n)
    if reason is not None:
        raise ValueError(f"attention: queries and keys are of {n} positions; {reason}")
    if documents is not None:
        right = documents.ndim == 2 and documents.shape[0] in (1, b) and documents.shape[1] == n
        if documents.dtype != torch.int64 or not right:
            given = f"{documents.dtype} {list(documents.shape)}"
            raise ValueError(f"attention: documents are {given}; they must be int64 {[b, n]}, or {[1, n]}")
    scale = d**-0.5 if scale is None else scale
    return AttentionCall(q, k, v, rule, scale, attn_mask, start_pos, documents=documents)


def _check_mask(mask: Tensor, b: int, nq: int, nk: int) -> None:
    # One size at a time: sizes may be symbols of a graph that is being traced.
    right = mask.ndim == 3 and mask.shape[0] in (1, b) and mask.shape[1] in (1, nq) and mask.shape[2] == nk
    if mask.dtype != torch.bool or not right:
        wanted = f"bool {[b, nq, nk]}, of which the first two may be 1"
        raise ValueError(f"attention: attn_mask is {mask.dtype} {list(mask.shape)}; it must be {wanted}")

"""Attention under a rule of who sees whom, over packed q, k and v or over three with places and heads of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.attention import bmm, flex_attention, reference, sdpa, triton_launch, xformers_attention
from gen.kernels.attention.rules import EVERYONE, Rule
from gen.kernels.dispatch import Backend, Op
from gen.kernels.rope import Pairs, checked

__all__ = ["attention", "attention_qkv"]

Packed = tuple[Tensor, Rule, float, Tensor | None, Tensor | None, float, Tensor | None, Tensor | None, Pairs]


def _attention(
    qkv: Tensor,
    rule: Rule = EVERYONE,
    scale: float | None = None,
    q_gain: Tensor | None = None,
    k_gain: Tensor | None = None,
    eps: float = 1e-6,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    pairs: Pairs = "adjacent",
) -> Packed:
    """softmax(scale q k^T) v of every head: qkv [B, N, 3, H, d] -> [B, N, H, d].

    qkv: as one product of a linear layer lays it out; read where it lies, never copied or permuted. rule: which places
    see which (rules.py); everyone everyone, by default. scale: 1 / sqrt(d) by default. q_gain, k_gain [d],
    eps: q and k are divided by their root mean square and multiplied by these. cos, sin, pairs: then both are turned;
    all of these as in gen.kernels.rope.norm_rope. A query that sees no key gets 0. ValueError for other shapes, and for
    a rule that is of another number of places.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"attention: qkv is {list(qkv.shape)}; it must be [B, N, 3, H, d]")
    reason = rule.unfit(qkv.shape[1])
    if reason is not None:
        raise ValueError(f"attention: qkv has {qkv.shape[1]} places; {reason}")
    if q_gain is not None or k_gain is not None or cos is not None or sin is not None:
        b, n, _, _, d = qkv.shape
        checked("attention", b, n, d, (q_gain, k_gain), cos, sin, pairs)
    return qkv, rule, qkv.shape[-1] ** -0.5 if scale is None else scale, q_gain, k_gain, eps, cos, sin, pairs


def _attention_qkv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rule: Rule = EVERYONE,
    scale: float | None = None,
    seen: Tensor | None = None,
    first: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Rule, float, Tensor | None, int]:
    """softmax(scale q k^T) v of every head: q [B, Nq, H, d], k and v [B, Nk, Hkv, d] -> [B, Nq, H, d].

    Hkv divides H, and head h of q reads head h Hkv / H of k and v, rounded down (grouped queries, Ainslie et al. 2023,
    arXiv 2305.13245). The keys are places 0 ... Nk - 1 of the rule and the queries places first ... first + Nq - 1: Nk
    - Nq where the queries are the newest of a cache of keys and values. seen: bool [B or 1, Nq or 1, Nk], which keys
    may be seen where the rule allows it too. scale: 1 / sqrt(d) by default. A query that sees no key gets 0. ValueError
    for other shapes, and for a rule that is of another number of places.
    """
    if q.ndim != 4 or k.ndim != 4 or v.shape != k.shape:
        given = ", ".join(f"{name} {list(t.shape)}" for name, t in (("q", q), ("k", k), ("v", v)))
        raise ValueError(f"attention_qkv: given {given}; they must be [B, Nq, H, d] and twice [B, Nk, Hkv, d]")
    (b, nq, h, d), (b_k, nk, h_k, d_k) = q.shape, k.shape
    if b != b_k or d != d_k or h % h_k:
        raise ValueError(
            f"attention_qkv: q is {[b, nq, h, d]}, k and v {[b_k, nk, h_k, d_k]}; "
            "B and d must be the same, and H a multiple of Hkv"
        )
    if seen is not None:
        _check_seen(seen, b, nq, nk)
    if first < 0:
        raise ValueError(f"attention_qkv: first is {first}; places are counted from 0")
    n = max(nk, first + nq)
    reason = rule.unfit(n)
    if reason is not None:
        raise ValueError(f"attention_qkv: queries and keys are of {n} places; {reason}")
    return q, k, v, rule, d**-0.5 if scale is None else scale, seen, first


def _check_seen(seen: Tensor, b: int, nq: int, nk: int) -> None:
    # One size at a time: sizes may be symbols of a graph that is being traced.
    right = seen.ndim == 3 and seen.shape[0] in (1, b) and seen.shape[1] in (1, nq) and seen.shape[2] == nk
    if seen.dtype != torch.bool or not right:
        wanted = f"bool {[b, nq, nk]}, the first two 1 at will"
        raise ValueError(f"attention_qkv: seen is {seen.dtype} {list(seen.shape)}; it must be {wanted}")


def _packed(
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
    return None


def _unpacked(q: Tensor, k: Tensor, v: Tensor, rule: Rule, scale: float, seen: Tensor | None, first: int) -> str | None:
    return None


# First what a CPU does fastest; then what PyTorch has for the rule; then what skips the tiles that a rule forbids; then
# what is dense; then the formula itself.
attention = Op(
    "attention",
    _attention,
    (
        Backend("products", bmm.refuses, bmm.run),
        Backend("sdpa", sdpa.refuses, sdpa.run, sdpa.detail),
        Backend("triton", triton_launch.refuses, triton_launch.run),
        Backend("flex", flex_attention.refuses, flex_attention.run),
        Backend("xformers", xformers_attention.refuses, xformers_attention.run),
        Backend("dense", _packed, sdpa.run),
        Backend("reference", _packed, reference.attention),
    ),
)

attention_qkv = Op(
    "attention_qkv",
    _attention_qkv,
    (
        Backend("sdpa", sdpa.refuses_qkv, sdpa.run_qkv, sdpa.detail_qkv),
        Backend("triton", triton_launch.refuses_qkv, triton_launch.run_qkv),
        Backend("flex", flex_attention.refuses_qkv, flex_attention.run_qkv),
        Backend("xformers", xformers_attention.refuses_qkv, xformers_attention.run_qkv),
        Backend("dense", _unpacked, sdpa.run_qkv),
        Backend("reference", _unpacked, reference.attention_qkv),
    ),
)

"""Attention over the tokens of all processes by a ring: keys and values travel, queries stay.

Each process meets the keys of every other in turn and merges what it saw by the logarithm of the softmax's sum, so any
number of processes will do, whatever the number of heads. (Ring Attention, Liu et al. 2023, arXiv 2310.01889; the merge
as in Milakov & Gimelshein 2018, arXiv 1805.02867.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from gen.kernels.attention import triton_launch as attention_triton
from gen.kernels.attention.rules import Bidirectional, Rule, encode
from gen.kernels.rope import Pairs, checked, prepared
from gen.kernels.sequence_parallel.ulysses import Group, Traffic, own_tokens, wide

__all__ = ["ring_attention", "ring_attention_bytes"]

EVERYONE = Bidirectional()
Seen = tuple[Tensor, Tensor]  # the average [B, n, H, d] over some keys, and the logarithm of its weights' sum [B, H, n]


def ring_attention(
    qkv: Tensor,
    rule: Rule = EVERYONE,
    scale: float | None = None,
    q_gain: Tensor | None = None,
    k_gain: Tensor | None = None,
    eps: float = 1e-6,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    pairs: Pairs = "adjacent",
    *,
    group: Group = None,
    traffic: Traffic | None = None,
) -> Tensor:
    """gen.kernels.attention over P n tokens of which this process holds n: qkv [B, n, 3, H, d] -> [B, n, H, d].

    A second pass around the ring brings the gradients of keys and values home. What is merged has float32 at least. On
    a GPU each meeting is our Triton kernel, elsewhere plain products, with n^2 scores. cos and sin are of all P n
    places. Differentiable once. ValueError for a rule other than Bidirectional: under others some processes would have
    little to do, and wait.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"ring_attention: qkv is {list(qkv.shape)}; it must be [B, N / P, 3, H, d]")
    if not isinstance(rule, Bidirectional):
        raise ValueError(f"ring_attention: the rule is {rule}; allowed: Bidirectional. ulysses_attention takes any")
    b, n, _, _, d = qkv.shape
    checked("ring_attention", b, n * dist.get_world_size(group), d, (q_gain, k_gain), cos, sin, pairs)
    if cos is not None and sin is not None:
        cos, sin = (own_tokens(table, group, -2) for table in (cos, sin))
    q, k, v = prepared(qkv, q_gain, k_gain, eps, cos, sin, pairs)  # each [B, n, H, d]
    return _Ring.apply(q, k, v, d**-0.5 if scale is None else scale, group, traffic)  # type: ignore[no-untyped-call]


def ring_attention_bytes(qkv: Tensor, processes: int, backward: bool = False) -> int:
    """What one process sends: 2 (P - 1) of B n H d numbers; in a backward as many again, and their gradients.

    n is the process's own share of the tokens. The gradients travel in float32 at least.
    """
    gradients = qkv.numel() * wide(qkv.dtype).itemsize
    return 2 * (processes - 1) * (qkv.nbytes + backward * (qkv.nbytes + gradients)) // 3


class _Ring(torch.autograd.Function):
    """Attention of q, k, v [B, n, H, d]."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, group: Group, traffic: Traffic | None
    ) -> Tensor:
        ctx.scale, ctx.group, ctx.traffic = scale, group, traffic
        out, lse = reduce(_merge, (_meet(q, kv, scale) for kv in _passing(k, v, group, traffic)))
        ctx.save_for_backward(q, k, v, out, lse)
        return out.to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        dq, own, travelling = torch.zeros_like(out), torch.empty(0), None
        for step, kv in enumerate(_passing(k, v, ctx.group, ctx.traffic)):
            more, dkv = _meet_backward(q, kv, out, lse, grad, ctx.scale)
            dq += more
            if step == 0:
                own = dkv
                continue
            # The keys and values that are here were at others before: their gradients follow one hop behind.
            total = dkv if travelling is None else travelling.arrived() + dkv
            travelling = _Hop(total, ctx.group, ctx.traffic, 1)
        dk, dv = own if travelling is None else own + travelling.arrived()
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _passing(k: Tensor, v: Tensor, group: Group, traffic: Traffic | None) -> Iterator[Tensor]:
    """k and v of every process as one [2, B, n, H, d]: own first, then those of the one behind, and so on.

    The next are on their way while one's are used.
    """
    kv = torch.stack([k, v])
    for _ in range(dist.get_world_size(group) - 1):
        coming = _Hop(kv, group, traffic, 0)
        yield kv
        kv = coming.arrived()
    yield kv


class _Hop:
    """A tensor on its way to the next process of the ring, and one of the same shape from the one before.

    tag: keeps apart what is under way at the same time.
    """

    def __init__(self, tensor: Tensor, group: Group, traffic: Traffic | None, tag: int) -> None:
        self._sent = tensor.contiguous()  # kept until it has been sent
        self._arriving = torch.empty_like(self._sent)
        rank, count = dist.get_rank(group), dist.get_world_size(group)
        ahead, behind = ((rank + by) % count for by in (1, -1))
        out = dist.P2POp(dist.isend, self._sent, group=group, tag=tag, group_peer=ahead)
        back = dist.P2POp(dist.irecv, self._arriving, group=group, tag=tag, group_peer=behind)
        self._works = dist.batch_isend_irecv([out, back])
        if traffic is not None:
            traffic.sent += self._sent.nbytes

    def arrived(self) -> Tensor:
        for work in self._works:
            work.wait()
        return self._arriving


def _merge(one: Seen, other: Seen) -> Seen:
    """Two softmax averages over different keys as one."""
    lse = torch.logaddexp(one[1], other[1])
    shares = [(part[1] - lse).exp().mT[..., None] for part in (one, other)]  # each [B, n, H, 1]
    return shares[0] * one[0] + shares[1] * other[0], lse


def _meet(q: Tensor, kv: Tensor, scale: float) -> Seen:
    """What queries [B, n, H, d] see in keys and values [2, B, n, H, d], wide."""
    k, v = kv
    if attention_triton.refuses_qkv(q, k, v, EVERYONE, scale, None, 0) is None:
        found, log2 = torch.ops.gen_kernels.attention_qkv(q, k, v, None, encode(EVERYONE), 0, scale)
        return found.to(wide(q.dtype)), log2 * math.log(2)
    q, k, v = (x.to(wide(q.dtype)).transpose(1, 2) for x in (q, k, v))  # each [B, H, n, d]
    scores = scale * (q @ k.mT)
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1)


def _meet_backward(
    q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, grad: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """What one meeting adds to the gradients of q and of kv, wide.

    out, lse and grad are of the whole attention: with them each weight is exp(score - lse), and needs no other meeting
    (Dao 2023, FlashAttention-2, arXiv 2307.08691, algorithm 2).
    """
    k, v = kv
    if attention_triton.refuses_qkv(q, k, v, EVERYONE, scale, None, 0) is None:
        found, grad = out.to(q.dtype).contiguous(), grad.to(q.dtype)
        given = q, k, v, None, found, lse / math.log(2), grad, encode(EVERYONE), 0, scale
        dq, dk, dv = torch.ops.gen_kernels.attention_qkv_backward(*given)
        return dq.to(out.dtype), torch.stack([dk, dv]).to(out.dtype)
    q, k, v, out, grad = (x.to(out.dtype).transpose(1, 2) for x in (q, k, v, out, grad))  # each [B, H, n, d]
    weights = (scale * (q @ k.mT) - lse[..., None]).exp()
    d_scores = scale * weights * (grad @ v.mT - (grad * out).sum(-1, keepdim=True))
    dkv = torch.stack([d_scores.mT @ q, weights.mT @ grad])  # [2, B, H, n, d]
    return (d_scores @ k).transpose(1, 2), dkv.transpose(2, 3)

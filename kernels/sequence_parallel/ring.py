"""Attention over the tokens of all processes by a ring: keys and values travel, queries stay.

Each process attends to the keys of every other in turn and merges the averages by the logarithm of the softmax's sum,
so any number of processes will do, whatever the number of heads. (Ring Attention, Liu et al. 2023, arXiv 2310.01889;
the merge as in Milakov & Gimelshein 2018, arXiv 1805.02867.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from gen.kernels.attention import BIDIRECTIONAL, Bidirectional, MaskRule, triton_launch
from gen.kernels.attention.call import AttentionCall
from gen.kernels.attention.rules import encode
from gen.kernels.lib.autograd import Context
from gen.kernels.rope import Pairs, check_norm_rope
from gen.kernels.sequence_parallel.collectives import Group, Traffic, accumulation_dtype, local_tokens

__all__ = ["ring_attention", "ring_attention_bytes"]

# The average [B, n, H, d] over some keys, and the logarithm of its weights' sum [B, H, n].
Average = tuple[Tensor, Tensor]


def ring_attention(
    qkv: Tensor,
    rule: MaskRule = BIDIRECTIONAL,
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
    """Compute packed_attention over P n tokens of which this process holds n; differentiable once.

    A second pass around the ring brings the gradients of keys and values home. Averages are merged in float32 at least.
    Each step is our Triton kernel on a GPU, elsewhere plain products, with n^2 scores.

    Args:
        qkv: this process's share, [B, n, 3, H, d].
        rule: only Bidirectional: under others some processes would have little to do, and wait.
        scale, q_gain, k_gain, eps, pairs: as in packed_attention.
        cos, sin: tables of all P n positions, or None.
        group: the processes; all by default.
        traffic: counts the bytes that this process sends.

    Returns:
        [B, n, H, d].

    Raises:
        ValueError: for other shapes or rules.
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"ring_attention: qkv is {list(qkv.shape)}; it must be [B, N / P, 3, H, d]")
    if not isinstance(rule, Bidirectional):
        raise ValueError(f"ring_attention: the rule is {rule}; allowed: Bidirectional. ulysses_attention takes any")
    b, n, _, _, d = qkv.shape
    check_norm_rope("ring_attention", b, n * dist.get_world_size(group), d, (q_gain, k_gain), cos, sin, pairs)
    if cos is not None and sin is not None:
        cos, sin = (local_tokens(table, group, -2) for table in (cos, sin))
    (q, k, v), scale = qkv.unbind(2), d**-0.5 if scale is None else scale
    call = AttentionCall(q, k, v, rule, scale, None, 0, q_gain, k_gain, eps, cos, sin, pairs, qkv)
    call = call.after_norm_rope()
    return _Ring.apply(call.q, call.k, call.v, scale, group, traffic)  # type: ignore[no-untyped-call]


def ring_attention_bytes(qkv: Tensor, processes: int, backward: bool = False) -> int:
    """Return the bytes that one process sends: 2 (P - 1) of B n H d numbers, n its own share of the tokens.

    Args:
        qkv: this process's share.
        processes: their number P.
        backward: adds as many again, and their gradients, in float32 at least.
    """
    gradients = qkv.numel() * accumulation_dtype(qkv.dtype).itemsize
    return 2 * (processes - 1) * (qkv.nbytes + backward * (qkv.nbytes + gradients)) // 3


class _Ring(torch.autograd.Function):
    """Autograd function of attention of q, k, v [B, n, H, d]."""

    @staticmethod
    def forward(
        ctx: Context, q: Tensor, k: Tensor, v: Tensor, scale: float, group: Group, traffic: Traffic | None
    ) -> Tensor:
        ctx.constants = scale, group, traffic
        out, lse = reduce(_merge, (_average(q, kv, scale) for kv in _ring_pass(k, v, group, traffic)))
        ctx.save_for_backward(q, k, v, out, lse)
        return out.to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        (q, k, v, out, lse), (scale, group, traffic) = ctx.saved_tensors, ctx.constants
        dq, own, travelling = torch.zeros_like(out), torch.empty(0), None
        for step, kv in enumerate(_ring_pass(k, v, group, traffic)):
            more, dkv = _average_backward(q, kv, out, lse, grad, scale)
            dq += more
            if step == 0:
                own = dkv
                continue
            # The keys and values that are here were at others before: their gradients follow one hop behind.
            total = dkv if travelling is None else travelling.wait() + dkv
            travelling = _Transfer(total, group, traffic, 1)
        dk, dv = own if travelling is None else own + travelling.wait()
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _ring_pass(k: Tensor, v: Tensor, group: Group, traffic: Traffic | None) -> Iterator[Tensor]:
    """Yield k and v of every process as one [2, B, n, H, d]: own first, then those of the one behind, and so on.

    The next are on their way while one's are used.
    """
    kv = torch.stack([k, v])
    for _ in range(dist.get_world_size(group) - 1):
        coming = _Transfer(kv, group, traffic, 0)
        yield kv
        kv = coming.wait()
    yield kv


class _Transfer:
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

    def wait(self) -> Tensor:
        for work in self._works:
            work.wait()
        return self._arriving


def _merge(one: Average, other: Average) -> Average:
    """Merge two softmax averages over different keys."""
    lse = torch.logaddexp(one[1], other[1])
    shares = [(part[1] - lse).exp().mT[..., None] for part in (one, other)]  # each [B, n, H, 1]
    return shares[0] * one[0] + shares[1] * other[0], lse


def _average(q: Tensor, kv: Tensor, scale: float) -> Average:
    """Return the average for queries [B, n, H, d] over keys and values [2, B, n, H, d], in the accumulation dtype."""
    k, v = kv
    if _has_kernel(q, k, v, scale):
        out, log2 = triton_launch.forward(q, k, v, None, encode(BIDIRECTIONAL), 0, scale)
        return out.to(accumulation_dtype(q.dtype)), log2 * math.log(2)
    q, k, v = (x.to(accumulation_dtype(q.dtype)).transpose(1, 2) for x in (q, k, v))  # each [B, H, n, d]
    scores = scale * (q @ k.mT)
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1)


def _average_backward(
    q: Tensor, kv: Tensor, out: Tensor, lse: Tensor, grad: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return what one step adds to the gradients of q and of kv, in the accumulation dtype.

    out, lse and grad are of the whole attention: with them each weight is exp(score - lse), and needs no other step
    (Dao 2023, FlashAttention-2, arXiv 2307.08691, algorithm 2).
    """
    k, v = kv
    if _has_kernel(q, k, v, scale):
        given = q, k, v, None, out.to(q.dtype).contiguous(), lse / math.log(2), grad.to(q.dtype)
        dq, dk, dv = triton_launch.backward(*given, encode(BIDIRECTIONAL), 0, scale)
        return dq.to(out.dtype), torch.stack([dk, dv]).to(out.dtype)
    q, k, v, out, grad = (x.to(out.dtype).transpose(1, 2) for x in (q, k, v, out, grad))  # each [B, H, n, d]
    weights = (scale * (q @ k.mT) - lse[..., None]).exp()
    d_scores = scale * weights * (grad @ v.mT - (grad * out).sum(-1, keepdim=True))
    dkv = torch.stack([d_scores.mT @ q, weights.mT @ grad])  # [2, B, H, n, d]
    return (d_scores @ k).transpose(1, 2), dkv.transpose(2, 3)


def _has_kernel(q: Tensor, k: Tensor, v: Tensor, scale: float) -> bool:
    return triton_launch.incompatible_reason(AttentionCall(q, k, v, BIDIRECTIONAL, scale)) is None

"""Sequence parallelism: attention over the tokens of all processes, of which each holds an equal share, in their order.

Every process calls with its own share and gets its own share of the result; what it costs in bytes is counted, and
foretold by the function beside each op. Gradients are those of the sum of all processes' losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from gen.kernels.attention import Bidirectional, Rule, attention

__all__ = [
    "Group",
    "Traffic",
    "gather_tokens",
    "gather_tokens_bytes",
    "linear_attention",
    "linear_attention_bytes",
    "own_tokens",
    "ulysses_attention",
    "ulysses_attention_bytes",
    "wide",
]

Group = dist.ProcessGroup | None  # None: all processes
EVERYONE = Bidirectional()


@dataclass
class Traffic:
    """How many bytes this process has sent to others, by the ops that it was given to."""

    sent: int = 0


def ulysses_attention(
    qkv: Tensor,
    rule: Rule = EVERYONE,
    scale: float | None = None,
    *,
    group: Group = None,
    traffic: Traffic | None = None,
    **options: Any,
) -> Tensor:
    """gen.kernels.attention over P n tokens of which this process holds n: qkv [B, n, 3, H, d] -> [B, n, H, d].

    One all-to-all gives each process all tokens of H / P heads, attention is local, and another takes its output back;
    so the numbers are those of one process, to the bit. The rule, and cos and sin among the op's other options, are of
    all P n places. ValueError unless P divides H. (DeepSpeed Ulysses, Jacobs et al. 2023, arXiv 2309.14509, section 3.)
    """
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ValueError(f"ulysses_attention: qkv is {list(qkv.shape)}; it must be [B, N / P, 3, H, d]")
    count, heads = dist.get_world_size(group), qkv.shape[3]
    if heads % count:
        raise ValueError(f"ulysses_attention: {heads} heads do not divide over {count} processes; take ring_attention")
    b, n, _, _, d = qkv.shape
    parts = qkv.reshape(b, n, 3, count, -1, d).movedim(3, 0)  # [P, B, n, 3, H / P, d], by where they go
    whole = _exchange(parts, group, traffic).movedim(0, 1).flatten(1, 2)  # [B, P n, 3, H / P, d]
    mixed = attention(whole, rule, scale, **options)  # [B, P n, H / P, d]
    back = _exchange(mixed.reshape(b, count, n, -1, d).movedim(1, 0), group, traffic)  # [P, B, n, H / P, d]
    return back.movedim(0, 2).flatten(2, 3)


def ulysses_attention_bytes(qkv: Tensor, processes: int, backward: bool = False) -> int:
    """What one process sends: 4 (P - 1) / P of B n H d numbers, 3 for qkv and 1 for the output; twice with a backward.

    n is the process's own share of the tokens, so that is 4 (P - 1) / P^2 of the whole sequence's.
    """
    return 4 * (qkv.nbytes // 3) * (processes - 1) // processes * (1 + backward)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, *, group: Group = None, traffic: Traffic | None = None) -> Tensor:
    """gen.kernels.linear_attention over P n tokens: q, k [B, H, n, d], v [B, H, n, e] -> [B, H, n, e], own tokens all.

    What travels is not tokens but what they add up to, whatever n: each process's state, softmax over its own tokens,
    [d, e], and the logarithm of its normaliser, [d], in one all-gather; in the backward the states' gradients in
    another. Both have float32 at least. (LASP-2, Sun et al. 2025, arXiv 2502.07563, algorithm 1, here with a
    normaliser over the tokens.) Differentiable once.
    """
    if q.ndim != 4 or k.shape != q.shape or v.ndim != 4 or v.shape[:3] != k.shape[:3]:
        given = ", ".join(str(list(x.shape)) for x in (q, k, v))
        raise ValueError(f"linear_attention: q, k, v are {given}; they must be twice [B, H, n, d], and [B, H, n, e]")
    return _Linear.apply(q, k, v, group, traffic)  # type: ignore[no-untyped-call]


def linear_attention_bytes(q: Tensor, v: Tensor, processes: int, backward: bool = False) -> int:
    """What one process sends: (P - 1) B H d (e + 1) numbers of the state's dtype, and in a backward (P - 1) B H d e."""
    (b, h, _, d), e = q.shape, v.shape[-1]
    return (processes - 1) * b * h * d * (e + 1 + backward * e) * wide(q.dtype).itemsize


def own_tokens(h: Tensor, group: Group = None, dim: int = 1) -> Tensor:
    """This process's share of tokens that all have, [B, N, ...] -> [B, N / P, ...]; ValueError unless P divides N."""
    count = dist.get_world_size(group)
    if h.shape[dim] % count:
        raise ValueError(f"own_tokens: {h.shape[dim]} tokens do not divide over {count} processes")
    return h.chunk(count, dim)[dist.get_rank(group)]


def gather_tokens(h: Tensor, *, group: Group = None, traffic: Traffic | None = None) -> Tensor:
    """All tokens, on every process, from each one's share: [B, n, ...] -> [B, P n, ...].

    Its gradient is the sum of those that all processes have for this one's tokens.
    """
    out: Tensor = _Gather.apply(h, group, traffic)  # type: ignore[no-untyped-call]
    return out.movedim(0, 1).flatten(1, 2)


def gather_tokens_bytes(h: Tensor, processes: int, backward: bool = False) -> int:
    """What one process sends: its share to each of the others, and in a backward as much of their gradients."""
    return (processes - 1) * h.nbytes * (1 + backward)


def wide(dtype: torch.dtype) -> torch.dtype:
    """In what sums over processes are held: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


class _Exchange(torch.autograd.Function):
    """x [P, ...]: part p goes to process p, and part p of the result came from there. Its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, traffic: Traffic | None) -> Tensor:
        ctx.group, ctx.traffic = group, traffic
        x, out = x.contiguous(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dist.all_to_all_single(out, x, group=group)
        _count(traffic, x.nbytes // len(x) * (len(x) - 1))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _exchange(grad, ctx.group, ctx.traffic), None, None


class _Gather(torch.autograd.Function):
    """x [...] of every process, [P, ...]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, traffic: Traffic | None) -> Tensor:
        ctx.group, ctx.traffic = group, traffic
        return _all(x, group, traffic)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _exchange(grad, ctx.group, ctx.traffic).sum(0), None, None


class _Linear(torch.autograd.Function):
    """`linear_attention`: S = sum_p w_p S_p with w_p = softmax_p(log Z_p), channel by channel, and out = q S."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: Group, traffic: Traffic | None) -> Tensor:
        ctx.group, ctx.traffic = group, traffic
        q_, k_, v_ = (x.to(wide(x.dtype)) for x in (q, k, v))
        log_z = k_.logsumexp(-2)  # [B, H, d]
        own = torch.cat([k_.softmax(-2).mT @ v_, log_z[..., None]], -1)  # [B, H, d, e + 1]
        gathered = _all(own, group, traffic)
        states, logs = gathered[..., :-1], gathered[..., -1:]  # [P, B, H, d, e], [P, B, H, d, 1]
        state = (logs.softmax(0) * states).sum(0)  # [B, H, d, e]
        ctx.save_for_backward(q, k, v, state, logs.logsumexp(0).mT)
        return (q_ @ state).to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, state, log_z = ctx.saved_tensors
        q_, k_, v_, grad = (x.to(state.dtype) for x in (q, k, v, grad))
        d_state = _all(q_.mT @ grad, ctx.group, ctx.traffic).sum(0)  # [B, H, d, e]
        share = (k_ - log_z).exp()  # of all tokens' softmax, the own: [B, H, n, d]
        # A softmax's gradient takes off the mean over all tokens, and that mean is in the state.
        mean = (state * d_state).sum(-1)[..., None, :]
        dk = share * (v_ @ d_state.mT - mean)
        return (grad @ state.mT).to(q.dtype), dk.to(k.dtype), (share @ d_state).to(v.dtype), None, None


def _exchange(x: Tensor, group: Group, traffic: Traffic | None) -> Tensor:
    return _Exchange.apply(x, group, traffic)  # type: ignore[no-untyped-call]


def _all(x: Tensor, group: Group, traffic: Traffic | None) -> Tensor:
    """x of every process: [P, ...]."""
    count = dist.get_world_size(group)
    out = x.new_empty(count, *x.shape)
    dist.all_gather_into_tensor(out.flatten(0, 1), x.contiguous(), group=group)
    _count(traffic, x.nbytes * (count - 1))
    return out


def _count(traffic: Traffic | None, sent: int) -> None:
    if traffic is not None:
        traffic.sent += sent

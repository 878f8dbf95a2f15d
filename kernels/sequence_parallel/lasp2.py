"""Linear attention over the tokens of all processes, which exchange states instead of tokens (LASP-2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gen.kernels.lib.autograd import Context
from gen.kernels.sequence_parallel.collectives import Group, Traffic, accumulation_dtype, all_gather

__all__ = ["lasp2_attention", "lasp2_attention_bytes"]


def lasp2_attention(q: Tensor, k: Tensor, v: Tensor, *, group: Group = None, traffic: Traffic | None = None) -> Tensor:
    """Compute linear_attention over P n tokens of which this process holds n; differentiable once.

    Whatever n, each process sends its state, softmax over its own tokens, [d, e], and the logarithm of its normaliser,
    [d], in one all-gather; in the backward the states' gradients in another. Both have float32 at least. (Sun et al.
    2025, arXiv 2502.07563, algorithm 1, here with a normaliser over the tokens.)

    Args:
        q, k: this process's share, [B, H, n, d].
        v: [B, H, n, e].
        group: the processes; all by default.
        traffic: counts the bytes that this process sends.

    Returns:
        [B, H, n, e].

    Raises:
        ValueError: for other shapes.
    """
    if q.ndim != 4 or k.shape != q.shape or v.ndim != 4 or v.shape[:3] != k.shape[:3]:
        given = ", ".join(str(list(x.shape)) for x in (q, k, v))
        raise ValueError(f"lasp2_attention: q, k, v are {given}; they must be twice [B, H, n, d], and [B, H, n, e]")
    return _Lasp2.apply(q, k, v, group, traffic)  # type: ignore[no-untyped-call]


def lasp2_attention_bytes(q: Tensor, v: Tensor, processes: int, backward: bool = False) -> int:
    """Return the bytes that one process sends: (P - 1) B H d (e + 1) numbers of the state's dtype.

    Args:
        q: this process's share, [B, H, n, d].
        v: [B, H, n, e].
        processes: their number P.
        backward: adds (P - 1) B H d e.
    """
    (b, h, _, d), e = q.shape, v.shape[-1]
    return (processes - 1) * b * h * d * (e + 1 + backward * e) * accumulation_dtype(q.dtype).itemsize


class _Lasp2(torch.autograd.Function):
    """Autograd function: S = sum_p w_p S_p with w_p = softmax_p(log Z_p), channel by channel, and out = q S."""

    @staticmethod
    def forward(ctx: Context, q: Tensor, k: Tensor, v: Tensor, group: Group, traffic: Traffic | None) -> Tensor:
        ctx.constants = group, traffic
        q_, k_, v_ = (x.to(accumulation_dtype(x.dtype)) for x in (q, k, v))
        log_z = k_.logsumexp(-2)  # [B, H, d]
        own = torch.cat([k_.softmax(-2).mT @ v_, log_z[..., None]], -1)  # [B, H, d, e + 1]
        gathered = all_gather(own, group, traffic)
        states, logs = gathered[..., :-1], gathered[..., -1:]  # [P, B, H, d, e], [P, B, H, d, 1]
        state = (logs.softmax(0) * states).sum(0)  # [B, H, d, e]
        ctx.save_for_backward(q, k, v, state, logs.logsumexp(0).mT)
        return (q_ @ state).to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, state, log_z = ctx.saved_tensors
        q_, k_, v_, grad = (x.to(state.dtype) for x in (q, k, v, grad))
        d_state = all_gather(q_.mT @ grad, *ctx.constants).sum(0)  # [B, H, d, e]
        share = (k_ - log_z).exp()  # this process's part of the softmax over all tokens, [B, H, n, d]
        # A softmax's gradient takes off the mean over all tokens, and that mean is in the state.
        mean = (state * d_state).sum(-1)[..., None, :]
        dk = share * (v_ @ d_state.mT - mean)
        return (grad @ state.mT).to(q.dtype), dk.to(k.dtype), (share @ d_state).to(v.dtype), None, None

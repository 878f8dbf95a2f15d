"""The selective scan by PyTorch, token by token, with no more than a few states of all tokens in memory."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gen.kernels.backends import _triton

__all__ = ["anything", "refuses", "run"]


def anything(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
    return None


def refuses(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> str | None:
    if not torch.compiler.is_compiling() and any(map(_triton.transformed, (u, delta, A, B, C))):
        return "only plain PyTorch passes torch.func and forward-mode derivatives"
    return None


def run(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    kind = torch.promote_types(u.dtype, torch.float32)
    y: Tensor = _scan(*(v.to(kind) for v in (u, delta, A, B, C)))[0]
    return y.to(u.dtype)


def _chunk(length: int) -> int:
    """Tokens between states that are kept: as many as there are such states."""
    return max(1, math.isqrt(length))


def _advance(h: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """The next state [b, N, D], of one token: u, delta [b, D], A [N, D], B [b, N]."""
    return torch.addcmul((delta * u)[:, None] * B[..., None], (delta[:, None] * A).exp_(), h)


@torch.library.custom_op("gen_kernels::selective_scan_torch", mutates_args=())
def _scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """y [b, T, D], and the state before every chunk's first token, [chunks, b, N, D]."""
    y, kept = _made(u, A)
    step, A_ = _chunk(u.shape[1]), A.mT.contiguous()
    h = u.new_zeros(u.shape[0], *A_.shape)
    for t in range(u.shape[1]):
        if t % step == 0:
            kept[t // step] = h
        h = _advance(h, u[:, t], delta[:, t], A_, B[:, t])
        y[:, t] = (C[:, t, None] @ h)[:, 0]
    return y, kept


def _made(u: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    chunks = -(-u.shape[1] // _chunk(u.shape[1]))
    return u.new_empty(u.shape), u.new_empty(chunks, u.shape[0], A.shape[1], A.shape[0])


@_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    return _made(u, A)


@torch.library.custom_op("gen_kernels::selective_scan_torch_backward", mutates_args=())
def _backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, kept: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Chunk by chunk from the last: its states once more, then their adjoints g_t = C_t dy_t + a_(t+1) g_(t+1)."""
    du, ddelta, dB, dC = (u.new_empty(v.shape) for v in (u, delta, B, C))
    step, A_ = _chunk(u.shape[1]), A.mT.contiguous()
    dA, g = torch.zeros_like(A_), torch.zeros_like(kept[0])
    for chunk in range(len(kept) - 1, -1, -1):
        places = range(chunk * step, min((chunk + 1) * step, u.shape[1]))
        states = [kept[chunk]]
        for t in places:
            states.append(_advance(states[-1], u[:, t], delta[:, t], A_, B[:, t]))
        for t in reversed(places):
            h = states.pop()
            dC[:, t] = (h * dy[:, t, None]).sum(2)
            g = torch.addcmul(g, C[:, t, :, None], dy[:, t, None])  # [b, N, D]
            from_b = (B[:, t, None] @ g)[:, 0]
            a = (delta[:, t, None] * A_).exp_()
            g_a = g * a
            rate = g_a * states[-1]  # of delta_t A
            du[:, t] = from_b * delta[:, t]
            ddelta[:, t] = from_b * u[:, t] + (rate * A_).sum(1)
            dB[:, t] = (g * (delta[:, t] * u[:, t])[:, None]).sum(2)
            dA += (rate * delta[:, t, None]).sum(0)
            g = g_a
    return du, ddelta, dA.mT.contiguous(), dB, dC


@_backward.register_fake
def _(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, kept: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return u.new_empty(u.shape), u.new_empty(u.shape), A.new_empty(A.shape), B.new_empty(B.shape), C.new_empty(C.shape)


def save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    """What a gradient needs, here and in Triton's op."""
    ctx.save_for_backward(*inputs, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, dy: Tensor, dkept: Tensor) -> Any:
    return _backward(*ctx.saved_tensors, dy)


_scan.register_autograd(_gradient, setup_context=save)

"""The selective scan on a processor: some tokens of some rows at a time, as many as its cache holds the states of.

Of each chunk of tokens only the state before it is kept; the gradient makes the others again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gen.kernels.lib import triton as _triton
from gen.kernels.selective_scan import pytorch

__all__ = ["anything", "refuses", "run"]

AT_ONCE = 1 << 19  # numbers of state that are at work at once, a few times over
SMALL = 1024  # numbers of one token's state that are summed faster than a product of matrices starts


def anything(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool
) -> str | None:
    return None


def refuses(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool
) -> str | None:
    if u.device.type != "cpu":
        return f"tensors lie on {u.device.type}; token after token is a processor's way"
    return _triton.transformed(u, delta, A, B, C)


def run(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool) -> Tensor:
    kind = torch.promote_types(u.dtype, torch.float32)
    y: Tensor = _scan(*(v.to(kind) for v in (u, delta, A, B, C)), order, reverse)[0]
    return y.to(u.dtype)


def _chunk(length: int, per_token: int) -> int:
    """Tokens between states that are kept: what fits the cache, but as many as there are such states."""
    return min(length, max(math.isqrt(length), AT_ONCE // per_token, 1))


def _parts(u: Tensor, A: Tensor, order: Tensor | None, reverse: bool) -> Iterator[tuple[int, slice, Any]]:
    """Chunks as the scan visits them, each with some rows of the batch and its tokens: what indexes [b, T, ...]."""
    batch, length = u.shape[:2]
    step = _chunk(length, A.numel())
    rows = max(1, AT_ONCE // (step * A.numel()))
    for chunk, low in enumerate(range(0, length, step)):
        high = min(low + step, length)
        tokens = slice(length - high, length - low) if reverse else slice(low, high)
        for row in range(0, batch, rows):
            yield chunk, slice(row, row + rows), tokens if order is None else order[tokens]


def _taken(v: Tensor, rows: slice, tokens: Any) -> Tensor:
    """Part of v [b, T, ...] as [tokens, rows, ...]."""
    return v[rows, tokens].transpose(0, 1)


def _visits(v: Tensor, reverse: bool) -> tuple[Tensor, ...]:
    """The tokens of v [tokens, ...] as the scan visits them."""
    return v.unbind()[::-1] if reverse else v.unbind()


def _states(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, before: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """exp(delta A) and the states of some tokens, [tokens, rows, N, D], from the state before them; None: zero."""
    a = (delta[:, :, None] * A).exp_()
    h = (delta * u)[:, :, None] * B[..., None]
    for link, new in zip(_visits(a, reverse), _visits(h, reverse), strict=True):
        before = new if before is None else new.addcmul_(link, before)
    return a, h


def _mix(weights: Tensor, states: Tensor) -> Tensor:
    """The states [tokens, rows, N, D] summed over N with weights [tokens, rows, N]."""
    if states.shape[2] * states.shape[3] < SMALL:
        return (weights[..., None] * states).sum(2)
    return (weights[:, :, None] @ states)[:, :, 0]


@torch.library.custom_op("gen_kernels::selective_scan_torch", mutates_args=())
def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """y [b, T, D], and the state before every chunk but the first, [chunks - 1, b, N, D]."""
    y, kept = _made(u, A)
    A_ = A.mT.contiguous()
    for chunk, rows, tokens in _parts(u, A, order, reverse):
        u_, delta_, B_, C_ = (_taken(v, rows, tokens) for v in (u, delta, B, C))
        _, h = _states(u_, delta_, A_, B_, kept[chunk - 1, rows] if chunk else None, reverse)
        y[rows, tokens] = _mix(C_, h).transpose(0, 1)
        if chunk < len(kept):
            kept[chunk, rows] = _visits(h, reverse)[-1]
    return y, kept


def _made(u: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    cuts = -(-u.shape[1] // _chunk(u.shape[1], A.numel())) - 1
    return u.new_empty(u.shape), u.new_empty(cuts, u.shape[0], A.shape[1], A.shape[0])


@_scan.register_fake
def _(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    return _made(u, A)


@torch.library.custom_op("gen_kernels::selective_scan_torch_backward", mutates_args=())
def _backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool, kept: Tensor,
    dy: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Chunk by chunk from the last: its states once more, then their adjoints g_t = C_t dy_t + a_(t+1) g_(t+1)."""
    du, ddelta, dB, dC = (u.new_empty(v.shape) for v in (u, delta, B, C))
    A_ = A.mT.contiguous()
    dA, carried = torch.zeros_like(A_), u.new_empty(u.shape[0], *A_.shape)
    for chunk, rows, tokens in reversed(list(_parts(u, A, order, reverse))):
        u_, delta_, B_, C_, dy_ = (_taken(v, rows, tokens) for v in (u, delta, B, C, dy))
        before = kept[chunk - 1, rows] if chunk else None
        a, h = _states(u_, delta_, A_, B_, before, reverse)
        g = C_[..., None] * dy_[:, :, None]  # [tokens, rows, N, D]
        visits = _visits(g, reverse)
        if chunk < len(kept):
            visits[-1].add_(carried[rows])
        for link, after, now in zip(_visits(a, reverse)[:0:-1], visits[:0:-1], visits[-2::-1], strict=True):
            now.addcmul_(link, after)
        from_b = _mix(B_, g)  # [tokens, rows, D]
        db, dc = (g * (delta_ * u_)[:, :, None]).sum(3), (h * dy_[:, :, None]).sum(3)
        g.mul_(a)  # carried past each token to the one before
        carried[rows] = visits[0]
        second, past = (g[:-1], h[1:]) if reverse else (g[1:], h[:-1])
        second.mul_(past)
        visits[0].copy_(torch.zeros_like(visits[0]) if before is None else visits[0] * before)  # now g is delta A's
        dA += (g * delta_[:, :, None]).sum((0, 1))
        found = ((du, from_b * delta_), (ddelta, from_b * u_ + (g * A_).sum(2)), (dB, db), (dC, dc))
        for out, value in found:
            out[rows, tokens] = value.transpose(0, 1)
    return du, ddelta, dA.mT.contiguous(), dB, dC


@_backward.register_fake
def _(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool, kept: Tensor,
    dy: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return u.new_empty(u.shape), u.new_empty(u.shape), A.new_empty(A.shape), B.new_empty(B.shape), C.new_empty(C.shape)


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """What a gradient needs, here and in Triton's op."""
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradient(ctx: Any, dy: Tensor, dkept: Tensor) -> Any:
    u, delta, A, B, C, order, kept = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
        return *pytorch.gradients(u, delta, A, B, C, order, ctx.reverse, dy), None, None
    return *_backward(u, delta, A, B, C, order, ctx.reverse, kept, dy), None, None


_scan.register_autograd(_gradient, setup_context=save)

"""The selective scan on a processor: some tokens of some rows at a time, as many as its cache holds the states of.

Of each chunk of tokens only the state before it is kept; the gradient computes the others again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gen.kernels.lib.autograd import Context, save_inputs, transform_reason
from gen.kernels.selective_scan import pytorch
from gen.kernels.selective_scan.call import SelectiveScanCall

__all__ = ["incompatible_reason", "run"]

AT_ONCE = 1 << 19  # numbers of state that are at work at once, a few times over
SMALL = 1024  # numbers of one token's state that are summed faster than a product of matrices starts


def incompatible_reason(call: SelectiveScanCall) -> str | None:
    """Return why the call is better computed otherwise, or None."""
    if call.u.device.type != "cpu":
        return f"tensors lie on {call.u.device.type}; token after token is for a CPU"
    return transform_reason(*call[:5])


def run(call: SelectiveScanCall) -> Tensor:
    """Compute chunk after chunk in at least float32."""
    kind = torch.promote_types(call.u.dtype, torch.float32)
    return _scan(*(v.to(kind) for v in call[:5]), call.order, call.reverse)[0].to(call.u.dtype)


def _chunk(length: int, per_token: int) -> int:
    """Return the tokens per chunk: what fits the cache, but at least as many as there are chunks."""
    return max(1, min(length, max(math.isqrt(length), AT_ONCE // per_token)))


def _parts(u: Tensor, A: Tensor, order: Tensor | None, reverse: bool) -> Iterator[tuple[int, slice, slice | Tensor]]:
    """Yield chunks as the scan visits them: their number, some rows of the batch and their tokens, as indices."""
    batch, length = u.shape[:2]
    step = _chunk(length, A.numel())
    rows = max(1, AT_ONCE // (step * A.numel()))
    for chunk, low in enumerate(range(0, length, step)):
        high = min(low + step, length)
        tokens = slice(length - high, length - low) if reverse else slice(low, high)
        for row in range(0, batch, rows):
            yield chunk, slice(row, row + rows), tokens if order is None else order[tokens]


def _part(v: Tensor, rows: slice, tokens: slice | Tensor) -> Tensor:
    """Return a part of v [b, T, ...] as [tokens, rows, ...]."""
    return v[rows, tokens].transpose(0, 1)


def _visits(v: Tensor, reverse: bool) -> tuple[Tensor, ...]:
    """Return the tokens of v [tokens, ...] as the scan visits them."""
    return v.unbind()[::-1] if reverse else v.unbind()


def _states(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, before: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Return exp(delta A) and the states [tokens, rows, N, D] of some tokens, from the state before them or zero."""
    a = (delta[:, :, None] * A).exp_()
    h = (delta * u)[:, :, None] * B[..., None]
    for link, new in zip(_visits(a, reverse), _visits(h, reverse), strict=True):
        before = new if before is None else new.addcmul_(link, before)
    return a, h


def _mix(weights: Tensor, states: Tensor) -> Tensor:
    """Return the states [tokens, rows, N, D] summed over N with weights [tokens, rows, N]."""
    if states.shape[2] * states.shape[3] < SMALL:
        return (weights[..., None] * states).sum(2)
    return (weights[:, :, None] @ states)[:, :, 0]


@torch.library.custom_op("gen_kernels::selective_scan_chunked", mutates_args=())
def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Return y [b, T, D], and the state before every chunk but the first, [chunks - 1, b, N, D]."""
    y, kept = _empty_outputs(u, A)
    A_ = A.mT.contiguous()
    for chunk, rows, tokens in _parts(u, A, order, reverse):
        u_, delta_, B_, C_ = (_part(v, rows, tokens) for v in (u, delta, B, C))
        _, h = _states(u_, delta_, A_, B_, kept[chunk - 1, rows] if chunk else None, reverse)
        y[rows, tokens] = _mix(C_, h).transpose(0, 1)
        if chunk < len(kept):
            kept[chunk, rows] = _visits(h, reverse)[-1]
    return y, kept


def _empty_outputs(u: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    cuts = max(0, -(-u.shape[1] // _chunk(u.shape[1], A.numel())) - 1)
    return u.new_empty(u.shape), u.new_empty(cuts, u.shape[0], A.shape[1], A.shape[0])


@_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return _empty_outputs(u, A)


@torch.library.custom_op("gen_kernels::selective_scan_chunked_backward", mutates_args=())
def _backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool, kept: Tensor,
    dy: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute, chunk by chunk from the last, its states again and their adjoints g_t = C_t dy_t + a_(t+1) g_(t+1)."""
    du, ddelta, dB, dC = (u.new_empty(v.shape) for v in (u, delta, B, C))
    A_ = A.mT.contiguous()
    dA, carried = torch.zeros_like(A_), u.new_empty(u.shape[0], *A_.shape)
    for chunk, rows, tokens in reversed(list(_parts(u, A, order, reverse))):
        u_, delta_, B_, C_, dy_ = (_part(v, rows, tokens) for v in (u, delta, B, C, dy))
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
        grads = ((du, from_b * delta_), (ddelta, from_b * u_ + (g * A_).sum(2)), (dB, db), (dC, dc))
        for out, value in grads:
            out[rows, tokens] = value.transpose(0, 1)
    return du, ddelta, dA.mT.contiguous(), dB, dC


@_backward.register_fake
def empty_gradients(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients, unwritten: here and in Triton's op."""
    du, ddelta, dA, dB, dC = (v.new_empty(v.shape) for v in (u, delta, A, B, C))
    return du, ddelta, dA, dB, dC


def _gradient(ctx: Context, dy: Tensor, dkept: Tensor) -> tuple[Tensor | None, ...]:
    (u, delta, A, B, C, order, kept), (reverse,) = ctx.saved_tensors, ctx.constants
    if torch.is_grad_enabled():  # the gradient will be differentiated too
        return *pytorch.gradients(SelectiveScanCall(u, delta, A, B, C, order, reverse), dy), None, None
    return *_backward(u, delta, A, B, C, order, reverse, kept, dy), None, None


_scan.register_autograd(_gradient, setup_context=save_inputs)

"""The selective scan by our Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gen.kernels.lib import triton as _triton
from gen.kernels.selective_scan import pytorch
from gen.kernels.selective_scan.chunked import save

__all__ = ["refuses", "run"]

CHUNK = 32  # tokens between states that are kept for the gradient


def refuses(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool
) -> str | None:
    reason = _triton.unable(u, delta, A, B, C, order)
    if reason is None and any(v.stride(-1) != 1 and v.shape[-1] > 1 for v in (u, delta, B, C)):
        reason = "the numbers of a token do not lie side by side"
    if reason is None and u.shape[0] > 65535:
        reason = f"{u.shape[0]} samples; a grid has room for 65535"
    if reason is None and A.shape[1] > 64:
        reason = f"{A.shape[1]} numbers of state per channel; kernels keep up to 64 in registers"
    return reason


def run(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool) -> Tensor:
    return _scan(u, delta, A, B, C, order if order is None else order.contiguous(), reverse)[0]


def _chunk() -> int:
    return 4 if _triton.INTERPRETED else CHUNK


def sizes(n: int) -> dict[str, int]:
    """About 1024 numbers of state to a program."""
    width = max(4, 1 << (n - 1).bit_length())
    if _triton.INTERPRETED:
        return {"BD": 8, "BN": width, "CHUNK": _chunk()}
    return {"BD": max(16, 1024 // width), "BN": width, "CHUNK": _chunk(), "num_warps": 4}


@torch.library.custom_op("gen_kernels::selective_scan", mutates_args=())
def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """y [b, T, D], and the state before every chunk's first token, float32 [b, chunks, D, N]."""
    from gen.kernels.selective_scan import triton_kernels as kernels

    (y, kept), size = _made(u, A), sizes(A.shape[1])
    grid = (-(-u.shape[2] // size["BD"]), u.shape[0])
    _triton.launch(
        kernels.forward, grid, u,
        u, delta, A.contiguous(), B, C, order, y, kept, *_steps(u, delta, B, C), *u.shape[1:], *kept.shape[:0:-2],
        ORDERED=order is not None, REVERSE=reverse, **size,
    )  # fmt: skip
    return y, kept


def _steps(*given: Tensor) -> list[int]:
    """From row to row of the batch and from token to token."""
    return [v.stride(dim) for v in given for dim in (0, 1)]


def _made(u: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    b, t, d = u.shape
    chunks = (t + _chunk() - 1) // _chunk()
    return u.new_empty(b, t, d), u.new_empty(b, chunks, d, A.shape[1], dtype=torch.float32)


@_scan.register_fake
def _(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    return _made(u, A)


@torch.library.custom_op("gen_kernels::selective_scan_backward", mutates_args=())
def _backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool, kept: Tensor,
    dy: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from gen.kernels.selective_scan import triton_kernels as kernels

    (b, t, d), n, size = u.shape, A.shape[1], sizes(A.shape[1])
    blocks = -(-d // size["BD"])
    du, ddelta = u.new_empty(b, t, d), delta.new_empty(b, t, d)
    da = u.new_empty(b, d, n, dtype=torch.float32)
    db, dc = (u.new_empty(b, blocks, t, n, dtype=torch.float32) for _ in range(2))
    room = u.new_empty(b, blocks, size["CHUNK"], size["BD"], size["BN"], dtype=torch.float32)
    _triton.launch(
        kernels.backward, (blocks, b), u,
        u, delta, A.contiguous(), B, C, order, kept, dy.contiguous(), du, ddelta, da, db, dc, room,
        *_steps(u, delta, B, C), t, d, n, kept.shape[1],
        ORDERED=order is not None, REVERSE=reverse, **size,
    )  # fmt: skip
    return du, ddelta, da.sum(0).to(A.dtype), db.sum(1).to(B.dtype), dc.sum(1).to(C.dtype)


@_backward.register_fake
def _(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool, kept: Tensor,
    dy: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    du, ddelta, dA, dB, dC = (v.new_empty(v.shape) for v in (u, delta, A, B, C))
    return du, ddelta, dA, dB, dC


def _gradient(ctx: Any, dy: Tensor, dkept: Tensor) -> Any:
    u, delta, A, B, C, order, kept = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
        return *pytorch.gradients(u, delta, A, B, C, order, ctx.reverse, dy), None, None
    return *_backward(u, delta, A, B, C, order, ctx.reverse, kept, dy), None, None


_scan.register_autograd(_gradient, setup_context=save)

"""The selective scan by our Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.lib import triton_support
from gen.kernels.lib.autograd import Context, save_inputs
from gen.kernels.lib.triton_support import INTERPRETED
from gen.kernels.selective_scan import chunked, pytorch
from gen.kernels.selective_scan.call import SelectiveScanCall

__all__ = ["incompatible_reason", "run", "sizes"]

CHUNK = 4 if INTERPRETED else 32  # tokens between states that are kept for the gradient


def incompatible_reason(call: SelectiveScanCall) -> str | None:
    """Return why our kernels cannot compute the call, or None."""
    u, delta, A, B, C, order, _ = call
    reason = triton_support.incompatible_reason(u, delta, A, B, C, order)
    reason = reason or triton_support.stride_reason(u, delta, B, C)
    if reason is None and A.shape[1] > 64:
        return f"{A.shape[1]} numbers of state per channel; kernels keep up to 64 in registers"
    return reason or triton_support.grid_reason(u.shape[0], "samples")


def run(call: SelectiveScanCall) -> Tensor:
    """Compute the scan, the states of some channels in registers."""
    *tensors, order, reverse = call
    return _scan(*tensors, order if order is None else order.contiguous(), reverse)[0]


def sizes(n: int) -> dict[str, int]:
    """Return tiles of about 1024 numbers of state to a program, and warps."""
    width = triton_support.power_of_2(n, 4)
    if INTERPRETED:
        return {"BD": 8, "BN": width, "CHUNK": CHUNK}
    return {"BD": max(16, 1024 // width), "BN": width, "CHUNK": CHUNK, "num_warps": 4}


@torch.library.custom_op("gen_kernels::selective_scan", mutates_args=())
def _scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Return y [b, T, D], and the state before every chunk's first token, float32 [b, chunks, D, N]."""
    from gen.kernels.selective_scan import triton_kernels

    (y, kept), size = _empty_outputs(u, A), sizes(A.shape[1])
    triton_support.launch(
        triton_kernels.forward, (-(-u.shape[2] // size["BD"]), u.shape[0]), u,
        u, delta, A.contiguous(), B, C, order, y, kept, *_strides(u, delta, B, C), *u.shape[1:], *kept.shape[:0:-2],
        ORDERED=order is not None, REVERSE=reverse, **size,
    )  # fmt: skip
    return y, kept


def _strides(*given: Tensor) -> list[int]:
    """Return the strides of rows of the batch and of tokens."""
    return [v.stride(dim) for v in given for dim in (0, 1)]


def _empty_outputs(u: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    b, t, d = u.shape
    chunks = (t + CHUNK - 1) // CHUNK
    return u.new_empty(b, t, d), u.new_empty(b, chunks, d, A.shape[1], dtype=torch.float32)


@_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
    return _empty_outputs(u, A)


@torch.library.custom_op("gen_kernels::selective_scan_backward", mutates_args=())
def _backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, reverse: bool, kept: Tensor,
    dy: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from gen.kernels.selective_scan import triton_kernels

    (b, t, d), n, size = u.shape, A.shape[1], sizes(A.shape[1])
    blocks = -(-d // size["BD"])
    du, ddelta = u.new_empty(b, t, d), delta.new_empty(b, t, d)
    da = u.new_empty(b, d, n, dtype=torch.float32)
    db, dc = (u.new_empty(b, blocks, t, n, dtype=torch.float32) for _ in range(2))
    states = u.new_empty(b, blocks, size["CHUNK"], size["BD"], size["BN"], dtype=torch.float32)
    triton_support.launch(
        triton_kernels.backward, (blocks, b), u,
        u, delta, A.contiguous(), B, C, order, kept, dy.contiguous(), du, ddelta, da, db, dc, states,
        *_strides(u, delta, B, C), t, d, n, kept.shape[1],
        ORDERED=order is not None, REVERSE=reverse, **size,
    )  # fmt: skip
    return du, ddelta, da.sum(0).to(A.dtype), db.sum(1).to(B.dtype), dc.sum(1).to(C.dtype)


_backward.register_fake(chunked.empty_gradients)


def _gradient(ctx: Context, dy: Tensor, dkept: Tensor) -> tuple[Tensor | None, ...]:
    (u, delta, A, B, C, order, kept), (reverse,) = ctx.saved_tensors, ctx.constants
    if torch.is_grad_enabled():  # the gradient will be differentiated too
        return *pytorch.gradients(SelectiveScanCall(u, delta, A, B, C, order, reverse), dy), None, None
    return *_backward(u, delta, A, B, C, order, reverse, kept, dy), None, None


_scan.register_autograd(_gradient, setup_context=save_inputs)

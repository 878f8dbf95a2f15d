"""Short convolution by our Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.lib import triton_support
from gen.kernels.lib.autograd import Context, double_backward, save_inputs
from gen.kernels.lib.triton_support import INTERPRETED
from gen.kernels.short_convolution import pytorch
from gen.kernels.short_convolution.call import ShortConvolutionCall

__all__ = ["incompatible_reason", "run", "sizes"]

MOST = 8  # taps, each of which is a row of registers


def incompatible_reason(call: ShortConvolutionCall) -> str | None:
    """Return why our kernels cannot compute the call, or None."""
    u, weight, bias, order, _ = call
    reason = triton_support.incompatible_reason(u, weight, bias, order) or triton_support.stride_reason(u)
    if reason is None and weight.shape[1] > MOST:
        return f"{weight.shape[1]} taps; kernels take up to {MOST}"
    return reason or triton_support.grid_reason(u.shape[0], "samples")


def run(call: ShortConvolutionCall) -> Tensor:
    """Compute all taps in one pass."""
    u, weight, bias, order, reverse = call
    return _convolve(u, weight, bias, order if order is None else order.contiguous(), reverse)


def sizes(taps: int) -> dict[str, int]:
    """Return tiles and warps."""
    if INTERPRETED:
        return {"TAPS": taps, "BT": 8, "BD": 8}
    return {"TAPS": taps, "BT": 32, "BD": 64, "num_warps": 4}


def _grid(u: Tensor, size: dict[str, int]) -> tuple[int, int, int]:
    return -(-u.shape[1] // size["BT"]), -(-u.shape[2] // size["BD"]), u.shape[0]


@torch.library.custom_op("gen_kernels::short_convolution", mutates_args=())
def _convolve(u: Tensor, weight: Tensor, bias: Tensor, order: Tensor | None, reverse: bool) -> Tensor:
    from gen.kernels.short_convolution import triton_kernels

    y, size = _empty_output(u, weight), sizes(weight.shape[1])
    triton_support.launch(
        triton_kernels.forward, _grid(u, size), u, u, weight.contiguous(), bias.contiguous(), order, y, *u.stride()[:2],
        *u.shape[1:], ORDERED=order is not None, REVERSE=reverse, **size,
    )  # fmt: skip
    return y


@_convolve.register_fake
def _empty_output(u: Tensor, weight: Tensor, *rest: object) -> Tensor:
    return u.new_empty(u.shape, dtype=torch.promote_types(u.dtype, weight.dtype))


@torch.library.custom_op("gen_kernels::short_convolution_backward", mutates_args=())
def _backward(
    u: Tensor, weight: Tensor, order: Tensor | None, reverse: bool, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of u, weight and bias, the last in weight's dtype."""
    from gen.kernels.short_convolution import triton_kernels

    size = sizes(weight.shape[1])
    grid = _grid(u, size)
    du = u.new_empty(u.shape)
    parts = u.new_empty(u.shape[0], grid[0], weight.shape[1] + 1, u.shape[2], dtype=torch.float32)
    triton_support.launch(
        triton_kernels.backward, grid, u, u, weight.contiguous(), order, dy.contiguous(), du, parts, *u.stride()[:2],
        *u.shape[1:], ORDERED=order is not None, REVERSE=reverse, **size,
    )  # fmt: skip
    total = parts.sum((0, 1)).to(weight.dtype)
    return du, total[:-1].mT.contiguous(), total[-1].clone()


@_backward.register_fake
def _(u: Tensor, weight: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor]:
    return u.new_empty(u.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _gradient(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
    (u, weight, bias, order), (reverse,) = ctx.saved_tensors, ctx.constants
    if torch.is_grad_enabled():  # the gradient will be differentiated too

        def run(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return pytorch.run(ShortConvolutionCall(u, weight, bias, order, reverse))

        return *double_backward(run, (u, weight, bias), dy), None, None
    du, dweight, dbias = _backward(u, weight, order, reverse, dy)
    return du, dweight, dbias.to(bias.dtype), None, None


_convolve.register_autograd(_gradient, setup_context=save_inputs)

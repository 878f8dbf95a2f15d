"""Short convolution by our Triton kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from gen.kernels.lib import triton as _triton
from gen.kernels.short_convolution import pytorch

__all__ = ["refuses", "run"]

MOST = 8  # taps, each of which is a row of registers


def refuses(u: Tensor, weight: Tensor, bias: Tensor, order: Tensor | None, reverse: bool) -> str | None:
    reason = _triton.unable(u, weight, bias, order)
    if reason is None and u.stride(2) != 1 and u.shape[2] > 1:
        reason = "the numbers of a token do not lie side by side"
    if reason is None and weight.shape[1] > MOST:
        reason = f"{weight.shape[1]} taps; kernels take up to {MOST}"
    if reason is None and u.shape[0] > 65535:
        reason = f"{u.shape[0]} samples; a grid has room for 65535"
    return reason


def run(u: Tensor, weight: Tensor, bias: Tensor, order: Tensor | None, reverse: bool) -> Tensor:
    return _convolve(u, weight, bias, order if order is None else order.contiguous(), reverse)


def sizes(taps: int) -> dict[str, int]:
    if _triton.INTERPRETED:
        return {"TAPS": taps, "BT": 8, "BD": 8}
    return {"TAPS": taps, "BT": 32, "BD": 64, "num_warps": 4}


def _grid(u: Tensor, size: dict[str, int]) -> tuple[int, int, int]:
    return -(-u.shape[1] // size["BT"]), -(-u.shape[2] // size["BD"]), u.shape[0]


@torch.library.custom_op("gen_kernels::short_convolution", mutates_args=())
def _convolve(u: Tensor, weight: Tensor, bias: Tensor, order: Tensor | None, reverse: bool) -> Tensor:
    from gen.kernels.short_convolution import triton_kernels as kernels

    y, size = _made(u, weight), sizes(weight.shape[1])
    _triton.launch(
        kernels.forward, _grid(u, size), u, u, weight.contiguous(), bias.contiguous(), order, y, *u.stride()[:2],
        *u.shape[1:], ORDERED=order is not None, REVERSE=reverse, **size,
    )  # fmt: skip
    return y


def _made(u: Tensor, weight: Tensor) -> Tensor:
    return u.new_empty(u.shape, dtype=torch.promote_types(u.dtype, weight.dtype))


@_convolve.register_fake
def _(u: Tensor, weight: Tensor, bias: Tensor, order: Tensor | None, reverse: bool) -> Tensor:
    return _made(u, weight)


@torch.library.custom_op("gen_kernels::short_convolution_backward", mutates_args=())
def _backward(
    u: Tensor, weight: Tensor, order: Tensor | None, reverse: bool, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u, weight and bias, the last in weight's dtype."""
    from gen.kernels.short_convolution import triton_kernels as kernels

    size = sizes(weight.shape[1])
    grid = _grid(u, size)
    du = u.new_empty(u.shape)
    parts = u.new_empty(u.shape[0], grid[0], weight.shape[1] + 1, u.shape[2], dtype=torch.float32)
    _triton.launch(
        kernels.backward, grid, u, u, weight.contiguous(), order, dy.contiguous(), du, parts, *u.stride()[:2],
        *u.shape[1:], ORDERED=order is not None, REVERSE=reverse, **size,
    )  # fmt: skip
    total = parts.sum((0, 1)).to(weight.dtype)
    return du, total[:-1].mT.contiguous(), total[-1].clone()


@_backward.register_fake
def _(u: Tensor, weight: Tensor, order: Tensor | None, reverse: bool, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return u.new_empty(u.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx: Any, dy: Tensor) -> Any:
    u, weight, bias, order = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
        run = partial(pytorch.run, order=order, reverse=ctx.reverse)
        return *_triton.again(run, (u, weight, bias), dy), None, None
    du, dweight, dbias = _backward(u, weight, order, ctx.reverse, dy)
    return du, dweight, dbias.to(bias.dtype), None, None


_convolve.register_autograd(_gradient, setup_context=_save)

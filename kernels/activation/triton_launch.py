"""Activations by our Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.activation.call import GeluCall, RationalCall
from gen.kernels.lib import autograd, triton_support
from gen.kernels.lib.autograd import Context
from gen.kernels.lib.triton_support import INTERPRETED

__all__ = ["contiguous_reason", "gelu_tanh", "gelu_tanh_reason", "rational", "rational_reason", "swiglu"]


def contiguous_reason(*tensors: Tensor | None) -> str | None:
    """Return why our kernels cannot read the tensors, all of which must be contiguous, or None."""
    reason = triton_support.incompatible_reason(*tensors)
    if reason is None and not all(v is None or v.is_contiguous() for v in tensors):
        return "not all tensors are contiguous"
    return reason


def swiglu(ab: Tensor) -> Tensor:
    """Compute silu(a) b."""
    return _swiglu(ab)


def gelu_tanh_reason(call: GeluCall) -> str | None:
    """Return why our kernels cannot compute the call, or None."""
    return contiguous_reason(*call) or triton_support.mixed_dtypes_reason(*call)


def gelu_tanh(call: GeluCall) -> Tensor:
    """Compute GELU(x + bias) in its tanh form."""
    return _gelu(*call)


def rational_reason(call: RationalCall) -> str | None:
    """Return why our kernels cannot compute the call, or None."""
    reason, degrees = contiguous_reason(*call), (call.numerator.shape[1] - 1, call.denominator.shape[1])
    if reason is None and degrees != (5, 4):
        return f"degrees {degrees[0]} and {degrees[1]}; kernels have 5 and 4"
    return reason


def rational(call: RationalCall) -> Tensor:
    """Compute the rational functions."""
    return _rational(*call)


def _tiles(rows: int, columns: int) -> tuple[tuple[int, int], dict[str, int]]:
    """Return a grid over a matrix, and the kernel's sizes."""
    sizes = {"ROWS": 8, "COLUMNS": 16 if INTERPRETED else 256}
    return (-(-rows // sizes["ROWS"]), -(-columns // sizes["COLUMNS"])), sizes


@torch.library.custom_op("gen_kernels::swiglu", mutates_args=())
def _swiglu(ab: Tensor) -> Tensor:
    from gen.kernels.activation import triton_kernels

    d = ab.shape[-1] // 2
    out, rows = ab.new_empty(*ab.shape[:-1], d), ab.numel() // (2 * d)
    grid, sizes = _tiles(rows, d)
    triton_support.launch(triton_kernels.swiglu_forward, grid, ab, ab, out, 2 * d, rows, d, **sizes)
    return out


@_swiglu.register_fake
def _(ab: Tensor) -> Tensor:
    return ab.new_empty(*ab.shape[:-1], ab.shape[-1] // 2)


@torch.library.custom_op("gen_kernels::swiglu_backward", mutates_args=())
def _swiglu_backward(ab: Tensor, dout: Tensor) -> Tensor:
    from gen.kernels.activation import triton_kernels

    d = ab.shape[-1] // 2
    dab, rows = torch.empty_like(ab), ab.numel() // (2 * d)
    grid, sizes = _tiles(rows, d)
    dout = dout.contiguous()
    triton_support.launch(triton_kernels.swiglu_backward, grid, ab, ab, dout, dab, 2 * d, rows, d, **sizes)
    return dab


@_swiglu_backward.register_fake
def _(ab: Tensor, dout: Tensor) -> Tensor:
    return torch.empty_like(ab)


@torch.library.custom_op("gen_kernels::gelu_tanh", mutates_args=())
def _gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    from gen.kernels.activation import triton_kernels

    d, biased = x.shape[-1], bias is not None
    out, rows = torch.empty_like(x), x.numel() // d
    grid, sizes = _tiles(rows, d)
    triton_support.launch(triton_kernels.gelu_forward, grid, x, x, bias, out, d, rows, d, BIASED=biased, **sizes)
    return out


@_gelu.register_fake
def _(x: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("gen_kernels::gelu_tanh_backward", mutates_args=())
def _gelu_backward(x: Tensor, bias: Tensor | None, dout: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and bias; the second is empty without one."""
    from gen.kernels.activation import triton_kernels

    d = x.shape[-1]
    dx, rows = torch.empty_like(x), x.numel() // d
    grid, sizes = _tiles(rows, d)
    dbias = x.new_empty(0 if bias is None else grid[0], d, dtype=torch.float32)
    triton_support.launch(
        triton_kernels.gelu_backward, grid, x,
        x, bias, dout.contiguous(), dx, dbias, d, rows, d, BIASED=bias is not None, **sizes,
    )  # fmt: skip
    return dx, x.new_empty(0) if bias is None else dbias.sum(0).to(bias.dtype)


@_gelu_backward.register_fake
def _(x: Tensor, bias: Tensor | None, dout: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0) if bias is None else torch.empty_like(bias)


@torch.library.custom_op("gen_kernels::rational", mutates_args=())
def _rational(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    from gen.kernels.activation import triton_kernels

    d, groups = x.shape[-1], len(denominator)
    out, rows = torch.empty_like(x), x.numel() // d
    grid, sizes = _tiles(rows, d // groups)
    triton_support.launch(
        triton_kernels.rational_forward, (*grid, groups), x,
        x, numerator, denominator, out, d, rows, d, d // groups, 6 if len(numerator) > 1 else 0, **sizes,
    )  # fmt: skip
    return out


@_rational.register_fake
def _(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("gen_kernels::rational_backward", mutates_args=())
def _rational_backward(
    x: Tensor, numerator: Tensor, denominator: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from gen.kernels.activation import triton_kernels

    d, groups = x.shape[-1], len(denominator)
    dx, rows = torch.empty_like(x), x.numel() // d
    (parts, _), sizes = _tiles(rows, d // groups)
    da = x.new_empty(parts, groups, 6, dtype=torch.float32)
    db = x.new_empty(parts, groups, 4, dtype=torch.float32)
    triton_support.launch(
        triton_kernels.rational_backward, (parts, groups), x,
        x, numerator, denominator, dout.contiguous(), dx, da, db, d, rows, d, d // groups,
        6 if len(numerator) > 1 else 0, **sizes,
    )  # fmt: skip
    da = da.sum(0) if len(numerator) > 1 else da.sum((0, 1))[None]
    return dx, da.to(numerator.dtype), (db.sum(0) * denominator.sign()).to(denominator.dtype)


@_rational_backward.register_fake
def _(x: Tensor, numerator: Tensor, denominator: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(numerator), torch.empty_like(denominator)


def _swiglu_gradient(ctx: Context, dout: Tensor) -> Tensor:
    return _swiglu_backward(*ctx.saved_tensors, dout)


def _gelu_gradient(ctx: Context, dout: Tensor) -> tuple[Tensor, Tensor | None]:
    x, bias = ctx.saved_tensors
    dx, dbias = _gelu_backward(x, bias, dout)
    return dx, None if bias is None else dbias


def _rational_gradient(ctx: Context, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _rational_backward(*ctx.saved_tensors, dout)


_swiglu.register_autograd(_swiglu_gradient, setup_context=autograd.save_inputs)
_gelu.register_autograd(_gelu_gradient, setup_context=autograd.save_inputs)
_rational.register_autograd(_rational_gradient, setup_context=autograd.save_inputs)

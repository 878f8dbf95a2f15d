"""Activations by our Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gen.kernels.lib import triton as _triton

__all__ = ["gelu_tanh", "gelu_tanh_refuses", "rational", "rational_refuses", "swiglu", "swiglu_refuses"]


def swiglu_refuses(ab: Tensor) -> str | None:
    return _unable(ab)


def swiglu(ab: Tensor) -> Tensor:
    return _swiglu(ab)


def gelu_tanh_refuses(x: Tensor, bias: Tensor | None) -> str | None:
    return _unable(x, *([] if bias is None else [bias]))


def gelu_tanh(x: Tensor, bias: Tensor | None) -> Tensor:
    return _gelu(x, bias)


def rational_refuses(x: Tensor, numerator: Tensor, denominator: Tensor) -> str | None:
    reason = _triton.unable(x, numerator, denominator)
    if reason is None and (numerator.shape[1], denominator.shape[1]) != (6, 4):
        reason = f"degrees {numerator.shape[1] - 1} and {denominator.shape[1]}; kernels have 5 and 4"
    if reason is None and not (x.is_contiguous() and numerator.is_contiguous() and denominator.is_contiguous()):
        reason = "not all tensors are contiguous"
    return reason


def rational(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    return _rational(x, numerator, denominator)


def _unable(x: Tensor, *others: Tensor) -> str | None:
    reason = _triton.unable(x, *others)
    if reason is None and any(v.dtype != x.dtype for v in others):
        reason = f"mixed dtypes {x.dtype} and {others[0].dtype}"
    if reason is None and not all(v.is_contiguous() for v in (x, *others)):
        reason = "not all tensors are contiguous"
    return reason


def _tiles(rows: int, columns: int) -> tuple[tuple[int, int], dict[str, int]]:
    """A grid over a matrix, and the kernel's sizes."""
    sizes = {"ROWS": 8, "COLUMNS": 16 if _triton.INTERPRETED else 256}
    return (-(-rows // sizes["ROWS"]), -(-columns // sizes["COLUMNS"])), sizes


@torch.library.custom_op("gen_kernels::swiglu", mutates_args=())
def _swiglu(ab: Tensor) -> Tensor:
    from gen.kernels.activation import triton_kernels as kernels

    d = ab.shape[-1] // 2
    out, rows = ab.new_empty(*ab.shape[:-1], d), ab.numel() // (2 * d)
    grid, sizes = _tiles(rows, d)
    _triton.launch(kernels.swiglu_forward, grid, ab, ab, out, 2 * d, rows, d, **sizes)
    return out


@_swiglu.register_fake
def _(ab: Tensor) -> Tensor:
    return ab.new_empty(*ab.shape[:-1], ab.shape[-1] // 2)


@torch.library.custom_op("gen_kernels::swiglu_backward", mutates_args=())
def _swiglu_backward(ab: Tensor, dout: Tensor) -> Tensor:
    from gen.kernels.activation import triton_kernels as kernels

    d = ab.shape[-1] // 2
    dab, rows = torch.empty_like(ab), ab.numel() // (2 * d)
    grid, sizes = _tiles(rows, d)
    _triton.launch(kernels.swiglu_backward, grid, ab, ab, dout.contiguous(), dab, 2 * d, rows, d, **sizes)
    return dab


@_swiglu_backward.register_fake
def _(ab: Tensor, dout: Tensor) -> Tensor:
    return torch.empty_like(ab)


@torch.library.custom_op("gen_kernels::gelu_tanh", mutates_args=())
def _gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    from gen.kernels.activation import triton_kernels as kernels

    d = x.shape[-1]
    out, rows = torch.empty_like(x), x.numel() // d
    grid, sizes = _tiles(rows, d)
    _triton.launch(kernels.gelu_forward, grid, x, x, bias, out, d, rows, d, BIASED=bias is not None, **sizes)
    return out


@_gelu.register_fake
def _(x: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("gen_kernels::gelu_tanh_backward", mutates_args=())
def _gelu_backward(x: Tensor, bias: Tensor | None, dout: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and bias; the second is empty without one."""
    from gen.kernels.activation import triton_kernels as kernels

    d = x.shape[-1]
    dx, rows = torch.empty_like(x), x.numel() // d
    grid, sizes = _tiles(rows, d)
    dbias = x.new_empty(0 if bias is None else grid[0], d, dtype=torch.float32)
    _triton.launch(
        kernels.gelu_backward,
        grid,
        x,
        x,
        bias,
        dout.contiguous(),
        dx,
        dbias,
        d,
        rows,
        d,
        BIASED=bias is not None,
        **sizes,
    )
    return dx, x.new_empty(0) if bias is None else dbias.sum(0).to(bias.dtype)


@_gelu_backward.register_fake
def _(x: Tensor, bias: Tensor | None, dout: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0) if bias is None else torch.empty_like(bias)


@torch.library.custom_op("gen_kernels::rational", mutates_args=())
def _rational(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    from gen.kernels.activation import triton_kernels as kernels

    d, groups = x.shape[-1], len(denominator)
    out, rows = torch.empty_like(x), x.numel() // d
    grid, sizes = _tiles(rows, d // groups)
    step = 6 if len(numerator) > 1 else 0
    _triton.launch(
        kernels.rational_forward,
        (*grid, groups),
        x,
        x,
        numerator,
        denominator,
        out,
        d,
        rows,
        d,
        d // groups,
        step,
        **sizes,
    )
    return out


@_rational.register_fake
def _(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("gen_kernels::rational_backward", mutates_args=())
def _rational_backward(
    x: Tensor, numerator: Tensor, denominator: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    from gen.kernels.activation import triton_kernels as kernels

    d, groups = x.shape[-1], len(denominator)
    dx, rows = torch.empty_like(x), x.numel() // d
    (parts, _), sizes = _tiles(rows, d // groups)
    da = x.new_empty(parts, groups, 6, dtype=torch.float32)
    db = x.new_empty(parts, groups, 4, dtype=torch.float32)
    _triton.launch(
        kernels.rational_backward, (parts, groups), x,
        x, numerator, denominator, dout.contiguous(), dx, da, db, d, rows, d, d // groups,
        6 if len(numerator) > 1 else 0, **sizes,
    )  # fmt: skip
    da = da.sum(0) if len(numerator) > 1 else da.sum((0, 1))[None]
    return dx, da.to(numerator.dtype), (db.sum(0) * denominator.sign()).to(denominator.dtype)


@_rational_backward.register_fake
def _(x: Tensor, numerator: Tensor, denominator: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(numerator), torch.empty_like(denominator)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _of_swiglu(ctx: Any, dout: Tensor) -> Any:
    return _swiglu_backward(*ctx.saved_tensors, dout)


def _of_gelu(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor | None]:
    x, bias = ctx.saved_tensors
    dx, dbias = _gelu_backward(x, bias, dout)
    return dx, None if bias is None else dbias


def _of_rational(ctx: Any, dout: Tensor) -> Any:
    return _rational_backward(*ctx.saved_tensors, dout)


_swiglu.register_autograd(_of_swiglu, setup_context=_save)
_gelu.register_autograd(_of_gelu, setup_context=_save)
_rational.register_autograd(_of_rational, setup_context=_save)

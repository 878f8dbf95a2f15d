"""Modulated norms, gated residual sums, and both in one, by our Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gen.kernels.lib import triton as _triton
from gen.kernels.norm import pytorch

__all__ = [
    "gated_residual",
    "gated_residual_norm",
    "gated_residual_norm_refuses",
    "gated_residual_refuses",
    "modulated_norm",
    "modulated_norm_refuses",
]

WIDEST = 4096  # beyond it a row's gradients do not fit the registers
ROWS = 8  # rows whose gradients of the modulation one program sums


def modulated_norm_refuses(
    x: Tensor, scale: Tensor, shift: Tensor, gain: Tensor | None, kind: str, eps: float
) -> str | None:
    return _unable(x, gain, scale, shift)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, gain: Tensor | None, kind: str, eps: float) -> Tensor:
    return _norm(x, None, None, scale, shift, gain, kind == "rms", eps)[1]


def gated_residual_norm_refuses(
    x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, gain: Tensor | None, kind: str, eps: float
) -> str | None:
    return _unable(x, gain, scale, shift, gate, y)


def gated_residual_norm(
    x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, gain: Tensor | None, kind: str, eps: float
) -> tuple[Tensor, Tensor]:
    out, normed, _, _ = _norm(x, y, gate, scale, shift, gain, kind == "rms", eps)
    return out, normed


def gated_residual_refuses(x: Tensor, y: Tensor, gate: Tensor) -> str | None:
    return _unable(x, None, gate, gate, gate, y)


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return _gated(x, y, gate)


def _unable(x: Tensor, gain: Tensor | None, *others: Tensor) -> str | None:
    reason = _triton.unable(x, gain, *others)
    if reason is not None:
        return reason
    given = [x, *others] if gain is None else [x, gain, *others]
    if len({v.dtype for v in given}) > 1:
        return f"mixed dtypes {', '.join(sorted({str(v.dtype) for v in given}))}"
    if any(v.stride(-1) != 1 and v.shape[-1] > 1 for v in given):
        return "the numbers of a token do not lie side by side"
    if len({v.shape[1] for v in others if v.shape[1] != x.shape[1]} | {v.shape[1] for v in others[:3]}) > 1:
        return "gate, scale and shift are not all by sample, or all by token"
    if x.shape[0] > 65535:
        return f"{x.shape[0]} samples; a grid has room for 65535"
    if x.shape[-1] > WIDEST:
        return f"width {x.shape[-1]}; kernels take up to {WIDEST}"
    return None


def sizes(d: int) -> dict[str, int]:
    width = max(16, 1 << (d - 1).bit_length())
    if _triton.INTERPRETED:
        return {"D": d, "WIDTH": width}
    return {"D": d, "WIDTH": width, "num_warps": min(16, max(1, width // 256))}


def _strides(x: Tensor, *others: Tensor | None) -> list[int]:
    """Steps from sample to sample and from token to token; none from token to token where all share one."""
    steps = []
    for v in (x, *others):
        steps += [0, 0] if v is None else [v.stride(0), v.stride(1) if v.shape[1] == x.shape[1] else 0]
    return steps


@torch.library.custom_op("gen_kernels::norm", mutates_args=())
def _norm(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor, shift: Tensor, gain: Tensor | None, rms: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """x + gate y (empty without y), its modulated norm, and the norm's mean (empty for rms) and 1 / deviation."""
    from gen.kernels.norm import triton_kernels as kernels

    out, normed, mean, rstd = _made(x, y, rms)
    _triton.launch(
        kernels.forward, (x.shape[1], x.shape[0]), x,
        x, y, gate, scale, shift, gain, out, normed, mean, rstd, *_strides(x, x, y, gate, scale, shift)[2:], x.shape[1],
        eps, GATED=y is not None, GAINED=gain is not None, RMS=rms, **sizes(x.shape[2]),
    )  # fmt: skip
    return out, normed, mean, rstd


def _made(x: Tensor, y: Tensor | None, rms: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs, unwritten."""
    b, n, d = x.shape
    out = x.new_empty(0 if y is None else b, n, d)
    return (
        out,
        x.new_empty(b, n, d),
        x.new_empty(0 if rms else b, n, dtype=torch.float32),
        x.new_empty(b, n, dtype=torch.float32),
    )


@_norm.register_fake
def _(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor, shift: Tensor, gain: Tensor | None, rms: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _made(x, y, rms)


@torch.library.custom_op("gen_kernels::norm_backward", mutates_args=())
def _backward(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor, gain: Tensor | None, mean: Tensor, rstd: Tensor,
    dout: Tensor | None, dnormed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, y, gate, scale, shift and gain; empty where there is nothing."""
    from gen.kernels.norm import triton_kernels as kernels

    b, n, d = x.shape
    dnormed = dnormed if dnormed.stride(-1) == 1 else dnormed.contiguous()
    dout = dout if dout is None or dout.stride(-1) == 1 else dout.contiguous()
    per_token, parts = scale.shape[1] == n, -(-n // ROWS)
    dx, dy = x.new_empty(b, n, d), x.new_empty(0 if y is None else b, n, d)
    kind, rows = (x.dtype, n) if per_token else (torch.float32, parts)
    dgate = x.new_empty(0 if y is None else b, rows, d, dtype=kind)
    dscale, dshift = (x.new_empty(b, rows, d, dtype=kind) for _ in range(2))
    dgain = x.new_empty(b if gain is not None else 0, parts, d, dtype=torch.float32)
    _triton.launch(
        kernels.backward, (parts, b), x,
        x, y, gate, scale, gain, mean, rstd, dout, dnormed, dx, dy, dgate, dscale, dshift, dgain,
        *_strides(x, x, y, gate, scale, dout, dnormed)[2:], n, ROWS=ROWS, GATED=y is not None,
        GAINED=gain is not None, RMS=mean.shape[0] == 0, PER_TOKEN=per_token, **sizes(d),
    )  # fmt: skip
    if not per_token:
        dgate, dscale, dshift = (v.sum(1, keepdim=True).to(x.dtype) for v in (dgate, dscale, dshift))
    return dx, dy, dgate, dscale, dshift, dgain.sum((0, 1)).to(x.dtype) if gain is not None else x.new_empty(0)


@_backward.register_fake
def _(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor, gain: Tensor | None, mean: Tensor, rstd: Tensor,
    dout: Tensor | None, dnormed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    b, n, d = x.shape
    gated = 0 if y is None else b
    return (
        x.new_empty(b, n, d),
        x.new_empty(gated, n, d),
        x.new_empty(gated, scale.shape[1], d),
        x.new_empty(scale.shape),
        x.new_empty(scale.shape),
        x.new_empty(0 if gain is None else d),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, gate, scale, _, gain, ctx.rms, ctx.eps = inputs
    out, _, mean, rstd = output
    ctx.save_for_backward(x if y is None else out, y, gate, scale, gain, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)


def _gradient(ctx: Any, dout: Tensor, dnormed: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
    x, y, gate, scale, gain, mean, rstd = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
        return (
            *_differentiable(x, y, gate, scale, gain, "rms" if ctx.rms else "layer", ctx.eps, dout, dnormed),
            None,
            None,
        )
    dx, dy, dgate, dscale, dshift, dgain = _backward(
        x, y, gate, scale, gain, mean, rstd, None if y is None else dout, dnormed
    )
    gated = y is not None
    return (
        dx,
        dy if gated else None,
        dgate if gated else None,
        dscale,
        dshift,
        dgain if gain is not None else None,
        None,
        None,
    )


def _differentiable(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor, gain: Tensor | None, kind: str, eps: float,
    dout: Tensor, dnormed: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The same gradients in PyTorch. x is what was normed."""

    def run(x: Tensor, scale: Tensor, gain: Tensor | None = None) -> Tensor:
        return pytorch.modulated_norm(x, scale, torch.zeros_like(scale), gain, kind, eps)

    dx, dscale, *dgain = _triton.again(run, (x, scale) if gain is None else (x, scale, gain), dnormed)
    after = dscale, dnormed.sum_to_size(scale.shape), dgain[0] if dgain else None
    if y is None or gate is None:
        return dx, None, None, *after
    total = dout if dx is None else dout + dx
    return total, total * gate, (total * y).sum_to_size(gate.shape), *after


_norm.register_autograd(_gradient, setup_context=_save)


@torch.library.custom_op("gen_kernels::gated_residual", mutates_args=())
def _gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    from gen.kernels.norm import triton_kernels as kernels

    out = x.new_empty(x.shape)
    _triton.launch(
        kernels.gated, (x.shape[1], x.shape[0]), x, x, y, gate, out, *_strides(x, x, y, gate)[2:], x.shape[1],
        **sizes(x.shape[2]),
    )  # fmt: skip
    return out


@_gated.register_fake
def _(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("gen_kernels::gated_residual_backward", mutates_args=())
def _gated_backward(y: Tensor, gate: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of y and of gate; that of x is dout."""
    from gen.kernels.norm import triton_kernels as kernels

    b, n, d = y.shape
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    per_token, parts = gate.shape[1] == n, -(-n // ROWS)
    kind, rows = (gate.dtype, n) if per_token else (torch.float32, parts)
    dy, dgate = y.new_empty(y.shape), gate.new_empty(b, rows, d, dtype=kind)
    _triton.launch(
        kernels.gated_backward, (parts, b), y, y, gate, dout, dy, dgate, *_strides(y, y, gate, dout)[2:], n, ROWS=ROWS,
        PER_TOKEN=per_token, **sizes(d),
    )  # fmt: skip
    return dy, dgate if per_token else dgate.sum(1, keepdim=True).to(gate.dtype)


@_gated_backward.register_fake
def _(y: Tensor, gate: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), gate.new_empty(gate.shape)


def _save_gated(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _gated_gradient(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y, gate = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
        return dout, dout * gate, (dout * y).sum_to_size(gate.shape)
    return dout, *_gated_backward(y, gate, dout)


_gated.register_autograd(_gated_gradient, setup_context=_save_gated)

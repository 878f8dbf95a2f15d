"""Modulated norms, gated residual sums, and both in one, by our Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.lib import autograd, triton_support
from gen.kernels.lib.autograd import Context
from gen.kernels.lib.triton_support import INTERPRETED
from gen.kernels.norm import pytorch
from gen.kernels.norm.call import GatedResidualCall, GatedResidualNormCall, ModulatedNormCall, NormKind

__all__ = [
    "gated_residual",
    "gated_residual_norm",
    "gated_residual_norm_reason",
    "gated_residual_reason",
    "modulated_norm",
    "modulated_norm_reason",
    "sizes",
]

WIDEST = 4096  # beyond it a row's gradients do not fit the registers
ROWS = 8  # rows whose gradients of the modulation one program sums


def modulated_norm_reason(call: ModulatedNormCall) -> str | None:
    """Return why our kernels cannot compute the call, or None."""
    return _reason(call.x, call.gain, call.scale, call.shift)


def modulated_norm(call: ModulatedNormCall) -> Tensor:
    """Compute the norm and its modulation in one pass."""
    return _norm(call.x, None, None, call.scale, call.shift, call.gain, call.kind == "rms", call.eps)[1]


def gated_residual_norm_reason(call: GatedResidualNormCall) -> str | None:
    """Return why our kernels cannot compute the call, or None."""
    return _reason(call.x, call.gain, call.scale, call.shift, call.gate, call.y)


def gated_residual_norm(call: GatedResidualNormCall) -> tuple[Tensor, Tensor]:
    """Compute the sum and its norm in one pass."""
    *tensors, kind, eps = call
    out, normed, _, _ = _norm(*tensors, kind == "rms", eps)
    return out, normed


def gated_residual_reason(call: GatedResidualCall) -> str | None:
    """Return why our kernels cannot compute the call, or None."""
    return _reason(call.x, None, call.gate, call.gate, call.gate, call.y)


def gated_residual(call: GatedResidualCall) -> Tensor:
    """Compute the sum in one pass."""
    return _gated(*call)


def _reason(x: Tensor, gain: Tensor | None, *others: Tensor) -> str | None:
    reason = (
        triton_support.incompatible_reason(x, gain, *others)
        or triton_support.mixed_dtypes_reason(*others[:3])  # x, y and gain may have others, as they do in autocast
        or triton_support.stride_reason(x, gain, *others)
    )
    if reason is not None:
        return reason
    if len({v.shape[1] for v in others if v.shape[1] != x.shape[1]} | {v.shape[1] for v in others[:3]}) > 1:
        return "gate, scale and shift are not all by sample, or all by token"
    if x.shape[-1] > WIDEST:
        return f"width {x.shape[-1]}; kernels take up to {WIDEST}"
    return triton_support.grid_reason(x.shape[0], "samples")


def sizes(d: int) -> dict[str, int]:
    """Return the width of a row and warps."""
    width = triton_support.power_of_2(d, 16)
    if INTERPRETED:
        return {"D": d, "WIDTH": width}
    return {"D": d, "WIDTH": width, "num_warps": min(16, max(1, width // 256))}


def _strides(x: Tensor, *others: Tensor | None) -> list[int]:
    """Return the strides of samples and of tokens of the others; 0 for tokens that share one."""
    strides = []
    for v in others:
        strides += [0, 0] if v is None else [v.stride(0), v.stride(1) if v.shape[1] == x.shape[1] else 0]
    return strides


@torch.library.custom_op("gen_kernels::norm", mutates_args=())
def _norm(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor, shift: Tensor, gain: Tensor | None, rms: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return x + gate y (empty without y), its modulated norm, the norm's mean (empty for rms) and 1 / deviation."""
    from gen.kernels.norm import triton_kernels

    out, normed, mean, rstd = _empty_outputs(x, y, rms)
    triton_support.launch(
        triton_kernels.forward, (x.shape[1], x.shape[0]), x,
        x, y, gate, scale, shift, gain, out, normed, mean, rstd, *_strides(x, x, y, gate, scale, shift), x.shape[1],
        eps, GATED=y is not None, GAINED=gain is not None, RMS=rms, **sizes(x.shape[2]),
    )  # fmt: skip
    return out, normed, mean, rstd


def _empty_outputs(x: Tensor, y: Tensor | None, rms: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    b, n, d = x.shape
    mean, rstd = (x.new_empty(rows, n, dtype=torch.float32) for rows in (0 if rms else b, b))
    return x.new_empty(0 if y is None else b, n, d), x.new_empty(b, n, d), mean, rstd


@_norm.register_fake
def _(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor, shift: Tensor, gain: Tensor | None, rms: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return _empty_outputs(x, y, rms)


@torch.library.custom_op("gen_kernels::norm_backward", mutates_args=())
def _backward(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor, gain: Tensor | None, mean: Tensor, rstd: Tensor,
    dout: Tensor | None, dnormed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x, y, gate, scale, shift and gain, each in its dtype; empty where there is nothing."""
    from gen.kernels.norm import triton_kernels

    b, n, d = x.shape
    dnormed = dnormed if dnormed.stride(-1) == 1 else dnormed.contiguous()
    dout = dout if dout is None or dout.stride(-1) == 1 else dout.contiguous()
    per_token, parts = scale.shape[1] == n, -(-n // ROWS)
    dx, dy = x.new_empty(b, n, d), x.new_empty(0, n, d) if y is None else y.new_empty(b, n, d)
    kind, rows = (scale.dtype, n) if per_token else (torch.float32, parts)
    dgate = x.new_empty(0 if y is None else b, rows, d, dtype=kind)
    dscale, dshift = (x.new_empty(b, rows, d, dtype=kind) for _ in range(2))
    dgain = x.new_empty(b if gain is not None else 0, parts, d, dtype=torch.float32)
    triton_support.launch(
        triton_kernels.backward, (parts, b), x,
        x, y, gate, scale, gain, mean, rstd, dout, dnormed, dx, dy, dgate, dscale, dshift, dgain,
        *_strides(x, x, y, gate, scale, dout, dnormed), n, ROWS=ROWS, GATED=y is not None,
        GAINED=gain is not None, RMS=mean.shape[0] == 0, PER_TOKEN=per_token, **sizes(d),
    )  # fmt: skip
    if not per_token:
        dgate, dscale, dshift = (v.sum(1, keepdim=True).to(scale.dtype) for v in (dgate, dscale, dshift))
    return dx, dy, dgate, dscale, dshift, x.new_empty(0) if gain is None else dgain.sum((0, 1)).to(gain.dtype)


@_backward.register_fake
def _(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor, gain: Tensor | None, *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    b, n, d = x.shape
    dscale, dshift = scale.new_empty(scale.shape), scale.new_empty(scale.shape)
    dgate = scale.new_empty(0 if y is None else b, scale.shape[1], d)
    dgain = x.new_empty(0) if gain is None else gain.new_empty(d)
    dy = x.new_empty(0, n, d) if y is None else y.new_empty(b, n, d)
    return x.new_empty(b, n, d), dy, dgate, dscale, dshift, dgain


Inputs = tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor, Tensor | None, bool, float]


def _save(ctx: Context, inputs: Inputs, output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, y, gate, scale, _, gain, rms, eps = inputs
    out, _, mean, rstd = output
    ctx.constants = rms, eps
    ctx.save_for_backward(x if y is None else out, y, gate, scale, gain, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)


def _gradient(ctx: Context, dout: Tensor, dnormed: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    (x, y, gate, scale, gain, mean, rstd), (rms, eps) = ctx.saved_tensors, ctx.constants
    if torch.is_grad_enabled():  # the gradient will be differentiated too
        kind: NormKind = "rms" if rms else "layer"
        return *_double_backward(x, y, gate, scale, gain, kind, eps, dout, dnormed), None, None
    grads = _backward(x, y, gate, scale, gain, mean, rstd, None if y is None else dout, dnormed)
    has_grad = (True, y is not None, y is not None, True, True, gain is not None)
    return *(grad if has else None for grad, has in zip(grads, has_grad, strict=True)), None, None


def _double_backward(
    x: Tensor, y: Tensor | None, gate: Tensor | None, scale: Tensor, gain: Tensor | None, kind: NormKind, eps: float,
    dout: Tensor, dnormed: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return the same gradients by PyTorch. x is what was normed."""

    def run(x: Tensor, scale: Tensor, gain: Tensor | None = None) -> Tensor:
        return pytorch.modulated_norm(ModulatedNormCall(x, scale, torch.zeros_like(scale), gain, kind, eps))

    given = (x, scale) if gain is None else (x, scale, gain)
    dx, dscale, *dgain = autograd.double_backward(run, given, dnormed)
    after = dscale, dnormed.sum_to_size(scale.shape).to(scale.dtype), dgain[0] if dgain else None
    if y is None or gate is None:
        return dx, None, None, *after
    total = dout if dx is None else dout + dx
    return total, (total * gate).to(y.dtype), (total * y).sum_to_size(gate.shape).to(gate.dtype), *after


_norm.register_autograd(_gradient, setup_context=_save)


@torch.library.custom_op("gen_kernels::gated_residual", mutates_args=())
def _gated(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    from gen.kernels.norm import triton_kernels

    out = x.new_empty(x.shape)
    triton_support.launch(
        triton_kernels.gated, (x.shape[1], x.shape[0]), x, x, y, gate, out, *_strides(x, x, y, gate), x.shape[1],
        **sizes(x.shape[2]),
    )  # fmt: skip
    return out


@_gated.register_fake
def _(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("gen_kernels::gated_residual_backward", mutates_args=())
def _gated_backward(y: Tensor, gate: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of y and of gate; that of x is dout."""
    from gen.kernels.norm import triton_kernels

    b, n, d = y.shape
    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    per_token, parts = gate.shape[1] == n, -(-n // ROWS)
    kind, rows = (gate.dtype, n) if per_token else (torch.float32, parts)
    dy, dgate = y.new_empty(y.shape), gate.new_empty(b, rows, d, dtype=kind)
    triton_support.launch(
        triton_kernels.gated_backward, (parts, b), y, y, gate, dout, dy, dgate, *_strides(y, y, gate, dout), n,
        ROWS=ROWS, PER_TOKEN=per_token, **sizes(d),
    )  # fmt: skip
    return dy, dgate if per_token else dgate.sum(1, keepdim=True).to(gate.dtype)


@_gated_backward.register_fake
def _(y: Tensor, gate: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), gate.new_empty(gate.shape)


def _save_gated(ctx: Context, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _gated_gradient(ctx: Context, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y, gate = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient will be differentiated too
        return dout, (dout * gate).to(y.dtype), (dout * y).sum_to_size(gate.shape).to(gate.dtype)
    return dout, *_gated_backward(y, gate, dout)


_gated.register_autograd(_gated_gradient, setup_context=_save_gated)

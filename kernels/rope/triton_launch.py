"""Norm and rotary embedding of heads by our Triton kernels, in one pass; differentiable twice."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.lib import autograd, triton_support
from gen.kernels.lib.autograd import Context
from gen.kernels.lib.triton_support import INTERPRETED
from gen.kernels.rope import pytorch
from gen.kernels.rope.call import NormRopeCall

__all__ = ["incompatible_reason", "run", "sizes"]

WIDEST = 512
TILES = 4  # of heads in one program of the backward pass, whose gradients of the gain it sums


def incompatible_reason(call: NormRopeCall) -> str | None:
    """Return why our kernels cannot compute the call, or None."""
    x, gain, _, cos, sin, _ = call
    reason = triton_support.incompatible_reason(x, gain, cos, sin)
    if reason is not None:
        return reason
    if any(v is not None and v.requires_grad for v in (cos, sin)):
        return "cos and sin want gradients; to kernels they are constants"
    reason = triton_support.stride_reason(x, gain, cos, sin) or triton_support.grid_reason(x.shape[0], "samples")
    if reason is None and x.shape[-1] > WIDEST:
        return f"head dim {x.shape[-1]}; kernels take up to {WIDEST}"
    return reason


def run(call: NormRopeCall) -> Tensor:
    """Compute both in one pass."""
    x, gain, eps, cos, sin, pairs = call
    return _norm_rope(x, gain, eps, cos, sin, pairs == "split")


def sizes(d: int) -> dict[str, int]:
    """Return tiles of about 2,000 numbers to a program, and warps."""
    width = triton_support.power_of_2(d, 16)
    if INTERPRETED:
        return {"D": d, "WIDTH": width, "BM": 8}
    return {"D": d, "WIDTH": width, "BM": max(4, 2048 // width), "num_warps": 4}


def _table_strides(cos: Tensor | None, sin: Tensor | None) -> list[int]:
    """Return the strides of samples and of positions of both tables."""
    strides = []
    for v in (cos, sin):
        strides += [0, 0] if v is None else [0 if v.ndim == 2 or v.shape[0] == 1 else v.stride(0), v.stride(-2)]
    return strides


@torch.library.custom_op("gen_kernels::norm_rope", mutates_args=())
def _norm_rope(
    x: Tensor, gain: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None, split: bool
) -> Tensor:
    from gen.kernels.rope import triton_kernels

    b, n, h, d = x.shape
    out, size = x.new_empty(b, n, h, d), sizes(d)
    triton_support.launch(
        triton_kernels.forward, (-(-n * h // size["BM"]), b), x,
        x, gain, cos, sin, out, *x.stride()[:3], *_table_strides(cos, sin), n * h, h, eps,
        NORMED=gain is not None, ROTATED=cos is not None, SPLIT=split, **size,
    )  # fmt: skip
    return out


@_norm_rope.register_fake
def _(x: Tensor, *rest: object) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("gen_kernels::norm_rope_backward", mutates_args=())
def _backward(
    dout: Tensor, x: Tensor | None, gain: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None, split: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of gain; the latter empty without gain, and then x is not needed."""
    from gen.kernels.rope import triton_kernels

    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    b, n, h, d = dout.shape
    size = sizes(d)
    parts = -(-n * h // (size["BM"] * TILES))
    dx, dgain = dout.new_empty(b, n, h, d), dout.new_empty(b, parts, 0 if gain is None else d, dtype=torch.float32)
    triton_support.launch(
        triton_kernels.backward, (parts, b), dout,
        x, gain, cos, sin, dout, dx, dgain, *((0, 0, 0) if x is None else x.stride()[:3]), *dout.stride()[:3],
        *_table_strides(cos, sin), n * h, h, eps,
        NORMED=gain is not None, ROTATED=cos is not None, SPLIT=split, TILES=TILES, **size,
    )  # fmt: skip
    return dx, dgain.sum((0, 1)).to(dout.dtype if gain is None else gain.dtype)


@_backward.register_fake
def _(dout: Tensor, x: Tensor | None, gain: Tensor | None, *rest: object) -> tuple[Tensor, Tensor]:
    return dout.new_empty(dout.shape), dout.new_empty(0) if gain is None else gain.new_empty(gain.shape)


def _save(ctx: Context, inputs: tuple[Tensor, Tensor | None, float, Tensor, Tensor, bool], output: Tensor) -> None:
    x, gain, eps, cos, sin, split = inputs
    ctx.constants = eps, split
    ctx.save_for_backward(None if gain is None else x, gain, cos, sin)


def _gradient(ctx: Context, dout: Tensor) -> tuple[Tensor | None, ...]:
    (x, gain, cos, sin), (eps, split) = ctx.saved_tensors, ctx.constants
    dx, dgain = _backward(dout, x, gain, eps, cos, sin, split)
    return dx, None if gain is None else dgain, None, None, None, None


def _save_backward(ctx: Context, inputs: tuple[object, ...], output: tuple[Tensor, Tensor]) -> None:
    autograd.save_inputs(ctx, inputs, output[0])  # both outputs are differentiable


def _double_backward(ctx: Context, ddx: Tensor, ddgain: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of the gradients, in PyTorch: energies are trained by them."""
    (dout, x, gain, cos, sin), (eps, split) = ctx.saved_tensors, ctx.constants
    with torch.enable_grad():
        dout_ = dout.detach().requires_grad_()
        # Without a norm it is linear in x: any x will do, and nothing depends on it.
        x_ = (dout if x is None else x).detach().requires_grad_()
        gain_ = None if gain is None else gain.detach().requires_grad_()
        out = pytorch.run(NormRopeCall(x_, gain_, eps, cos, sin, "split" if split else "adjacent"))
        leaves = [x_] if gain_ is None else [x_, gain_]
        grads = torch.autograd.grad(out, leaves, dout_, create_graph=True)
        over = [dout_] if gain_ is None else [dout_, x_, gain_]
        second = torch.autograd.grad(grads, over, [ddx, ddgain][: len(leaves)])
    return second[0], *(second[1:] if gain is not None else (None, None)), None, None, None, None


_norm_rope.register_autograd(_gradient, setup_context=_save)
_backward.register_autograd(_double_backward, setup_context=_save_backward)

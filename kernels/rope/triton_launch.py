"""Norm and rotary embedding of heads by our Triton kernels, in one pass; differentiable twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gen.kernels.lib import triton as _triton
from gen.kernels.rope import pytorch

__all__ = ["refuses", "run", "sizes"]

WIDEST = 512
TILES = 4  # of heads in one program of the backward pass, whose gradients of the gain it sums


def refuses(
    x: Tensor, gain: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None, pairs: str
) -> str | None:
    reason = _triton.unable(x, gain, cos, sin)
    if reason is not None:
        return reason
    if any(v is not None and v.requires_grad for v in (cos, sin)):
        return "cos and sin want gradients; to kernels they are constants"
    if any(v is not None and v.stride(-1) != 1 for v in (x, gain, cos, sin)):
        return "the numbers of a head do not lie side by side"
    if x.shape[0] > 65535:
        return f"{x.shape[0]} samples; a grid has room for 65535"
    if x.shape[-1] > WIDEST:
        return f"head dim {x.shape[-1]}; kernels take up to {WIDEST}"
    return None


def run(x: Tensor, gain: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None, pairs: str) -> Tensor:
    return _norm_rope(x, gain, eps, cos, sin, pairs == "split")


def sizes(d: int) -> dict[str, int]:
    """Each program holds about 2,000 numbers of what it reads."""
    width = max(16, 1 << (d - 1).bit_length())
    if _triton.INTERPRETED:
        return {"D": d, "WIDTH": width, "BM": 8}
    return {"D": d, "WIDTH": width, "BM": max(4, 2048 // width), "num_warps": 4}


def _tables(cos: Tensor | None, sin: Tensor | None) -> list[int]:
    """Steps from sample to sample and from place to place, of both tables."""
    steps = []
    for v in (cos, sin):
        steps += [0, 0] if v is None else [0 if v.ndim == 2 or v.shape[0] == 1 else v.stride(0), v.stride(-2)]
    return steps


@torch.library.custom_op("gen_kernels::norm_rope", mutates_args=())
def _norm_rope(
    x: Tensor, gain: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None, split: bool
) -> Tensor:
    from gen.kernels.rope import triton_kernels as kernels

    b, n, h, d = x.shape
    out, size = x.new_empty(b, n, h, d), sizes(d)
    _triton.launch(
        kernels.forward, (-(-n * h // size["BM"]), b), x,
        x, gain, cos, sin, out, *x.stride()[:3], *_tables(cos, sin), n * h, h, eps,
        NORMED=gain is not None, TURNED=cos is not None, SPLIT=split, **size,
    )  # fmt: skip
    return out


@_norm_rope.register_fake
def _(x: Tensor, gain: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None, split: bool) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("gen_kernels::norm_rope_backward", mutates_args=())
def _backward(
    dout: Tensor, x: Tensor | None, gain: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None, split: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of gain; the latter empty without gain, and then x is not needed."""
    from gen.kernels.rope import triton_kernels as kernels

    dout = dout if dout.stride(-1) == 1 else dout.contiguous()
    b, n, h, d = dout.shape
    size = sizes(d)
    parts = -(-n * h // (size["BM"] * TILES))
    dx, dgain = dout.new_empty(b, n, h, d), dout.new_empty(b, parts, 0 if gain is None else d, dtype=torch.float32)
    _triton.launch(
        kernels.backward, (parts, b), dout,
        x, gain, cos, sin, dout, dx, dgain, *((0, 0, 0) if x is None else x.stride()[:3]), *dout.stride()[:3],
        *_tables(cos, sin), n * h, h, eps,
        NORMED=gain is not None, TURNED=cos is not None, SPLIT=split, TILES=TILES, **size,
    )  # fmt: skip
    return dx, dgain.sum((0, 1)).to(dout.dtype if gain is None else gain.dtype)


@_backward.register_fake
def _(
    dout: Tensor, x: Tensor | None, gain: Tensor | None, eps: float, cos: Tensor | None, sin: Tensor | None, split: bool
) -> tuple[Tensor, Tensor]:
    return dout.new_empty(dout.shape), dout.new_empty(0) if gain is None else gain.new_empty(gain.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, gain, ctx.eps, cos, sin, ctx.split = inputs
    ctx.save_for_backward(None if gain is None else x, gain, cos, sin)


def _gradient(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    x, gain, cos, sin = ctx.saved_tensors
    dx, dgain = _backward(dout, x, gain, ctx.eps, cos, sin, ctx.split)
    return dx, None if gain is None else dgain, None, None, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    dout, x, gain, ctx.eps, cos, sin, ctx.split = inputs
    ctx.save_for_backward(dout, x, gain, cos, sin)


def _second(ctx: Any, ddx: Tensor, ddgain: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of the gradients, in PyTorch: energies are trained by them."""
    dout, x, gain, cos, sin = ctx.saved_tensors
    with torch.enable_grad():
        dout_ = dout.detach().requires_grad_()
        # Without a norm it is linear in x: any x will do, and nothing depends on it.
        x_ = (dout if x is None else x).detach().requires_grad_()
        gain_ = None if gain is None else gain.detach().requires_grad_()
        out = pytorch.run(x_, gain_, ctx.eps, cos, sin, "split" if ctx.split else "adjacent")
        leaves = [x_] if gain_ is None else [x_, gain_]
        grads = torch.autograd.grad(out, leaves, dout_, create_graph=True)
        over = [dout_] if gain_ is None else [dout_, x_, gain_]
        found = torch.autograd.grad(grads, over, [ddx, ddgain][: len(leaves)])
    return found[0], *(found[1:] if gain is not None else (None, None)), None, None, None, None


_norm_rope.register_autograd(_gradient, setup_context=_save)
_backward.register_autograd(_second, setup_context=_save_backward)

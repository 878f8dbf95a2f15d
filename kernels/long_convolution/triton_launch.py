"""Long convolution of short sequences by our Triton kernels, as products with Toeplitz matrices that are never made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gen.kernels.lib import triton as _triton
from gen.kernels.long_convolution.pytorch import matrices

__all__ = ["refuses", "run"]

# Tokens up to which 2 T operations to a number are taken to cost less than Fourier transforms: by arithmetic, from a
# GPU's data sheet. Without tensor cores there are fewer of them to spend.
LONGEST, LONGEST_FLOAT = 1024, 256


def refuses(u: Tensor, K: Tensor) -> str | None:
    reason = _triton.unable(u, K)
    if reason is None and u.dtype != K.dtype:
        reason = f"mixed dtypes {u.dtype} and {K.dtype}"
    longest = LONGEST_FLOAT if u.dtype == torch.float32 else LONGEST
    if reason is None and u.shape[1] > longest:
        reason = f"{u.shape[1]} tokens of {u.dtype}; kernels take up to {longest}"
    if reason is None and u.shape[2] > 65535:
        reason = f"{u.shape[2]} channels; a grid has room for 65535"
    return reason


def run(u: Tensor, K: Tensor) -> Tensor:
    y: Tensor = _convolve(u.permute(2, 0, 1).contiguous(), K.contiguous())  # [H, B, T]
    return y.permute(1, 2, 0)


def sizes(kind: torch.dtype, batch: int) -> dict[str, Any]:
    rows = min(64, max(16, 1 << (batch - 1).bit_length()))
    if _triton.INTERPRETED:
        return {"BT": 16, "BB": 16}
    if kind == torch.float32:  # without tensor cores the operands of a product lie in registers
        return {"BT": 32, "BB": min(rows, 32), "num_warps": 4, "num_stages": 2}
    return {"BT": 64, "BB": rows, "num_warps": 4, "num_stages": 2}


def _constants(u: Tensor, taps: int) -> dict[str, Any]:
    import triton.language as tl

    kinds = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    # The interpreter multiplies the bits of bfloat16, not its numbers.
    dot = tl.float32 if _triton.INTERPRETED else kinds[u.dtype]
    return {"BOTH": taps != u.shape[2], "DOT": dot, "PRECISION": "ieee", **sizes(u.dtype, u.shape[1])}


def _product(u: Tensor, K: Tensor, mirrored: bool) -> Tensor:
    from gen.kernels.long_convolution import triton_kernels as kernels

    channels, batch, length = u.shape
    y, constants = u.new_empty(u.shape), _constants(u, K.shape[1])
    grid = -(-length // constants["BT"]), -(-batch // constants["BB"]), channels
    _triton.launch(kernels.convolve, grid, u, u, K, y, batch, length, K.shape[1], MIRRORED=mirrored, **constants)
    return y


@torch.library.custom_op("gen_kernels::long_convolution", mutates_args=())
def _convolve(u: Tensor, K: Tensor) -> Tensor:
    """u [H, B, T], K [H, T] or [H, 2T] -> [H, B, T]."""
    return _product(u, K, False)


@_convolve.register_fake
def _(u: Tensor, K: Tensor) -> Tensor:
    return u.new_empty(u.shape)


@torch.library.custom_op("gen_kernels::long_convolution_backward", mutates_args=())
def _backward(u: Tensor, K: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    from gen.kernels.long_convolution import triton_kernels as kernels

    channels, batch, length = u.shape
    dy, constants = dy.contiguous(), _constants(u, K.shape[1])
    blocks, both = -(-length // constants["BT"]), constants["BOTH"]
    distances = 2 * blocks - 1 if both else blocks
    parts = u.new_empty(channels, distances, 2, constants["BT"], dtype=torch.float32)
    _triton.launch(kernels.correlate, (distances, channels), u, u, dy, parts, batch, length, blocks, **constants)
    # At place r of distance q: the first part of q and the second of q + 1; there is one more distance before them all.
    sums = (pad(parts[:, :, 0], (0, 0, 1, 0)) + pad(parts[:, :, 1], (0, 0, 0, 1))).flatten(1)
    zero = (blocks if both else 1) * constants["BT"]  # where the difference is 0
    dK = sums[:, zero : zero + length]
    if both:
        dK = torch.cat([dK, torch.zeros_like(dK[:, :1]), sums[:, zero - length + 1 : zero]], 1)
    return _product(dy, K, True), dK.to(K.dtype, copy=True)


@_backward.register_fake
def _(u: Tensor, K: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), K.new_empty(K.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, dy: Tensor) -> Any:
    u, K = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn
        return _triton.again(matrices, (u, K), dy)
    return _backward(u, K, dy)


_convolve.register_autograd(_gradient, setup_context=_save)

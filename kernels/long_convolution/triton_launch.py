"""Long convolution of short sequences by our Triton kernels, as products with Toeplitz matrices never stored."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from gen.kernels.lib import triton_support
from gen.kernels.lib.autograd import Context, double_backward, save_inputs
from gen.kernels.lib.triton_support import INTERPRETED
from gen.kernels.long_convolution.call import LongConvolutionCall
from gen.kernels.long_convolution.pytorch import toeplitz_product

__all__ = ["incompatible_reason", "run", "sizes"]

# Tokens up to which 2 T operations to a number are taken to cost less than Fourier transforms: by arithmetic, from a
# GPU's data sheet. Without tensor cores there are fewer of them to spend.
LONGEST, LONGEST_FLOAT = 1024, 256


def incompatible_reason(call: LongConvolutionCall) -> str | None:
    """Return why our kernels cannot compute the call, or why they should not, or None."""
    u = call.u
    reason = triton_support.incompatible_reason(*call) or triton_support.mixed_dtypes_reason(*call)
    longest = LONGEST_FLOAT if u.dtype == torch.float32 else LONGEST
    if reason is None and u.shape[1] > longest:
        return f"{u.shape[1]} tokens of {u.dtype}; kernels take up to {longest}"
    return reason or triton_support.grid_reason(u.shape[2], "channels")


def run(call: LongConvolutionCall) -> Tensor:
    """Compute the convolution of [H, B, T]."""
    return _convolve(call.u.permute(2, 0, 1).contiguous(), call.K.contiguous()).permute(1, 2, 0)


def sizes(kind: torch.dtype, batch: int) -> dict[str, int]:
    """Return tiles and warps."""
    rows = min(64, triton_support.power_of_2(batch, 16))
    if INTERPRETED:
        return {"BT": 16, "BB": 16}
    if kind == torch.float32:  # without tensor cores the operands of a product lie in registers
        return {"BT": 32, "BB": min(rows, 32), "num_warps": 4, "num_stages": 2}
    return {"BT": 64, "BB": rows, "num_warps": 4, "num_stages": 2}


def _product(u: Tensor, K: Tensor, mirrored: bool) -> Tensor:
    from gen.kernels.long_convolution import triton_kernels

    channels, batch, length = u.shape
    y, size = u.new_empty(u.shape), sizes(u.dtype, batch)
    triton_support.launch(
        triton_kernels.convolve, (-(-length // size["BT"]), -(-batch // size["BB"]), channels), u,
        u, K, y, batch, length, K.shape[1], MIRRORED=mirrored, BOTH=K.shape[1] != length,
        **size, **triton_support.dot_constants(u.dtype),
    )  # fmt: skip
    return y


@torch.library.custom_op("gen_kernels::long_convolution", mutates_args=())
def _convolve(u: Tensor, K: Tensor) -> Tensor:
    """Return the convolution [H, B, T] of u [H, B, T] with K [H, T] or [H, 2T]."""
    return _product(u, K, False)


@_convolve.register_fake
def _(u: Tensor, K: Tensor) -> Tensor:
    return u.new_empty(u.shape)


@torch.library.custom_op("gen_kernels::long_convolution_backward", mutates_args=())
def _backward(u: Tensor, K: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    from gen.kernels.long_convolution import triton_kernels

    channels, batch, length = u.shape
    dy, size, both = dy.contiguous(), sizes(u.dtype, batch), K.shape[1] != length
    tile, blocks = size["BT"], -(-length // size["BT"])
    distances = 2 * blocks - 1 if both else blocks
    parts = u.new_empty(channels, distances, 2, tile, dtype=torch.float32)
    triton_support.launch(
        triton_kernels.correlate, (distances, channels), u, u, dy, parts, batch, length, blocks, BOTH=both,
        **size, **triton_support.dot_constants(u.dtype),
    )  # fmt: skip
    # At index r of distance q: the first part of q and the second of q + 1; there is one more distance before them all.
    sums = (pad(parts[:, :, 0], (0, 0, 1, 0)) + pad(parts[:, :, 1], (0, 0, 0, 1))).flatten(1)
    zero = (blocks if both else 1) * tile  # where the difference is 0
    dK = sums[:, zero : zero + length]
    if both:
        dK = torch.cat([dK, torch.zeros_like(dK[:, :1]), sums[:, zero - length + 1 : zero]], 1)
    return _product(dy, K, True), dK.to(K.dtype, copy=True)


@_backward.register_fake
def _(u: Tensor, K: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), K.new_empty(K.shape)


def _gradient(ctx: Context, dy: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # the gradient will be differentiated too
        return double_backward(toeplitz_product, ctx.saved_tensors, dy)
    return _backward(*ctx.saved_tensors, dy)


_convolve.register_autograd(_gradient, setup_context=save_inputs)

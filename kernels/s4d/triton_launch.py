"""S4D's kernel by our Triton kernels: every power is made where it is used, forwards and again for the gradient."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gen.kernels.lib import triton as _triton
from gen.kernels.s4d import pytorch

__all__ = ["refuses", "run"]


def refuses(A: Tensor, C: Tensor, dt: Tensor, length: int) -> str | None:
    reason = _triton.unable(A, C, dt)
    if reason is None and A.shape[0] > 65535:
        reason = f"{A.shape[0]} channels; a grid has room for 65535"
    if reason is None and C.shape[:-2].numel() > 4:
        reason = f"{C.shape[:-2].numel()} kernels of the same states; up to 4 share their powers"
    return reason


def run(A: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    step, drive = pytorch.held(A, C, dt)
    ways = drive.reshape(-1, *A.shape)
    K: Tensor = _product(ways.real.float(), ways.imag.float(), step.real, step.imag, length)
    return K.reshape(*C.shape[:-1], length).to(dt.dtype)


def sizes(ways: int) -> dict[str, int]:
    width = 1 << (ways - 1).bit_length()
    if _triton.INTERPRETED:
        return {"BW": width, "BN": 4, "BL": 16}
    return {"BW": width, "BN": 8, "BL": 64, "num_warps": 4}


def _turning(step_real: Tensor, step_imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """exp's base becomes 2, and angles become turns."""
    return (step_real / math.log(2)).contiguous(), (step_imaginary / (2 * math.pi)).contiguous()


@torch.library.custom_op("gen_kernels::s4d", mutates_args=())
def _product(real: Tensor, imaginary: Tensor, step_real: Tensor, step_imaginary: Tensor, length: int) -> Tensor:
    """Re sum_n v_n exp(l s_n): v as two float32 [W, H, N], s as two float64 [H, N] -> float32 [W, H, length]."""
    from gen.kernels.s4d import triton_kernels as kernels

    (ways, heads, n), size = real.shape, sizes(real.shape[0])
    K = real.new_empty(ways, heads, length)
    _triton.launch(
        kernels.forward, (-(-length // size["BL"]), heads), real, real.contiguous(), imaginary.contiguous(),
        *_turning(step_real, step_imaginary), K, heads, n, length, ways, **size,
    )  # fmt: skip
    return K


@_product.register_fake
def _(real: Tensor, imaginary: Tensor, step_real: Tensor, step_imaginary: Tensor, length: int) -> Tensor:
    return real.new_empty(*real.shape[:2], length)


@torch.library.custom_op("gen_kernels::s4d_backward", mutates_args=())
def _backward(
    real: Tensor, imaginary: Tensor, step_real: Tensor, step_imaginary: Tensor, dK: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from gen.kernels.s4d import triton_kernels as kernels

    (ways, heads, n), size = real.shape, sizes(real.shape[0])
    sums = real.new_empty(4, ways, heads, n)
    _triton.launch(
        kernels.backward, (-(-n // size["BN"]), heads), real, dK.contiguous(),
        *_turning(step_real, step_imaginary), sums, heads, n, dK.shape[2], ways, **size,
    )  # fmt: skip
    a, b, far_a, far_b = sums.unbind()
    of_real = (real * far_a - imaginary * far_b).sum(0)
    of_imaginary = (real * far_b + imaginary * far_a).sum(0)
    return a.clone(), -b, of_real.double(), -of_imaginary.double()


@_backward.register_fake
def _(
    real: Tensor, imaginary: Tensor, step_real: Tensor, step_imaginary: Tensor, dK: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    plain, wide = real.shape, step_real.shape
    return real.new_empty(plain), real.new_empty(plain), step_real.new_empty(wide), step_real.new_empty(wide)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _gradient(ctx: Any, dK: Tensor) -> Any:
    real, imaginary, step_real, step_imaginary = given = ctx.saved_tensors
    if torch.is_grad_enabled():  # the gradient is to be differentiated in its turn

        def run(*parts: Tensor) -> Tensor:
            ways, step = torch.complex(*parts[:2]), torch.complex(*parts[2:])
            return pytorch.product(step, ways, dK.shape[2], torch.float32)

        return *_triton.again(run, given, dK), None
    return *_backward(real, imaginary, step_real, step_imaginary, dK), None


_product.register_autograd(_gradient, setup_context=_save)

"""S4D's kernel by our Triton kernels: every power is computed where it is used, and again for the gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gen.kernels.lib import triton_support
from gen.kernels.lib.autograd import Context, double_backward, save_inputs
from gen.kernels.lib.triton_support import INTERPRETED
from gen.kernels.s4d import pytorch
from gen.kernels.s4d.call import S4DKernelCall

__all__ = ["incompatible_reason", "run", "sizes"]


def incompatible_reason(call: S4DKernelCall) -> str | None:
    """Return why our kernels cannot compute the call, or None."""
    A, C, dt, _ = call
    reason, ways = triton_support.incompatible_reason(A, C, dt), C.shape[:-2].numel()
    if reason is None and ways > 4:
        return f"{ways} kernels of the same states; up to 4 share their powers"
    return reason or triton_support.grid_reason(A.shape[0], "channels")


def run(call: S4DKernelCall) -> Tensor:
    """Compute the Vandermonde product of discretised states."""
    step, drive = pytorch.discretise(call)
    ways = drive.reshape(-1, *step.shape)
    K = _product(ways.real.float(), ways.imag.float(), step.real, step.imag, call.length)
    return K.reshape(*call.C.shape[:-1], call.length).to(call.dt.dtype)


def sizes(ways: int) -> dict[str, int]:
    """Return tiles and warps."""
    width = triton_support.power_of_2(ways)
    if INTERPRETED:
        return {"BW": width, "BN": 4, "BL": 16}
    return {"BW": width, "BN": 8, "BL": 64, "num_warps": 4}


def _in_turns(step_real: Tensor, step_imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """Return the steps for base 2, and with angles in turns."""
    return (step_real / math.log(2)).contiguous(), (step_imaginary / (2 * math.pi)).contiguous()


@torch.library.custom_op("gen_kernels::s4d", mutates_args=())
def _product(real: Tensor, imaginary: Tensor, step_real: Tensor, step_imaginary: Tensor, length: int) -> Tensor:
    """Return Re sum_n v_n exp(l s_n): v as two float32 [W, H, N], s as two float64 [H, N] -> float32 [W, H, length]."""
    from gen.kernels.s4d import triton_kernels

    (ways, heads, n), size = real.shape, sizes(real.shape[0])
    K = real.new_empty(ways, heads, length)
    triton_support.launch(
        triton_kernels.forward, (-(-length // size["BL"]), heads), real, real.contiguous(), imaginary.contiguous(),
        *_in_turns(step_real, step_imaginary), K, heads, n, length, ways, **size,
    )  # fmt: skip
    return K


@_product.register_fake
def _(real: Tensor, imaginary: Tensor, step_real: Tensor, step_imaginary: Tensor, length: int) -> Tensor:
    return real.new_empty(*real.shape[:2], length)


@torch.library.custom_op("gen_kernels::s4d_backward", mutates_args=())
def _backward(
    real: Tensor, imaginary: Tensor, step_real: Tensor, step_imaginary: Tensor, dK: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from gen.kernels.s4d import triton_kernels

    (ways, heads, n), size = real.shape, sizes(real.shape[0])
    sums = real.new_empty(4, ways, heads, n)
    triton_support.launch(
        triton_kernels.backward, (-(-n // size["BN"]), heads), real, dK.contiguous(),
        *_in_turns(step_real, step_imaginary), sums, heads, n, dK.shape[2], ways, **size,
    )  # fmt: skip
    a, b, far_a, far_b = sums.unbind()
    of_real = (real * far_a - imaginary * far_b).sum(0)
    of_imaginary = (real * far_b + imaginary * far_a).sum(0)
    return a.clone(), -b, of_real.double(), -of_imaginary.double()


@_backward.register_fake
def _(*given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d = (v.new_empty(v.shape) for v in given[:4])
    return a, b, c, d


def _gradient(ctx: Context, dK: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # the gradient will be differentiated too

        def run(*parts: Tensor) -> Tensor:
            ways, step = torch.complex(*parts[:2]), torch.complex(*parts[2:])
            return pytorch.vandermonde_product(step, ways, dK.shape[2], torch.float32)

        return *double_backward(run, ctx.saved_tensors, dK), None
    return *_backward(*ctx.saved_tensors, dK), None


_product.register_autograd(_gradient, setup_context=save_inputs)

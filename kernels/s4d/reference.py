"""S4D's convolution kernel as its formula stands.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has dt's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.s4d.call import S4DKernelCall

__all__ = ["s4d_kernel"]


def s4d_kernel(call: S4DKernelCall) -> Tensor:
    """Return 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(l dt A_n).

    Args:
        call: the complete arguments.
    """
    A, C, dt, length = call
    wide = torch.complex128
    step = dt.double()[:, None] * A.to(wide)  # [H, N / 2]
    drive = C.to(wide) * torch.expm1(step) / A.to(wide)
    index = torch.arange(length, device=A.device, dtype=torch.float64)
    return (2 * (drive[..., None] * (step[..., None] * index).exp()).sum(-2).real).to(dt.dtype)

"""S4D's kernel from two small Vandermonde matrices, as l = a width + b splits exp(l s) into two factors.

Of H N L exponentials some H N 2 sqrt(L) are left, and of the tensor [H, N, L] nothing. Short kernels are computed from
all exponentials at once, which is less work. Exponents, which turn many times around the circle, are computed in double
precision: their rounding would be most of the error.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gen.kernels.s4d.call import S4DKernelCall

__all__ = ["direct", "direct_reason", "discretise", "factored", "incompatible_reason", "vandermonde_product"]

FEW = 1 << 13  # exponentials up to which all are computed at once


def incompatible_reason(call: S4DKernelCall) -> str | None:
    """Return why the exponents cannot be computed, or None."""
    return f"{call.A.device.type} has no double precision" if call.A.device.type == "mps" else None


def direct_reason(call: S4DKernelCall) -> str | None:
    """Return why all exponentials at once are too many, or None."""
    count = call.A.numel() * call.length
    return f"{count} exponentials; beyond {FEW} two factors are less work" if count > FEW else incompatible_reason(call)


def direct(call: S4DKernelCall) -> Tensor:
    """Compute all exponentials at once."""
    step, drive = discretise(call)
    power = (step[..., None] * _indices(call.length, call.A)).exp()  # [H, N, L]
    return (drive[..., None] * power).sum(-2).real.to(call.dt.dtype)


def factored(call: S4DKernelCall) -> Tensor:
    """Compute the product of two factors, rounded to at least float32."""
    step, drive = discretise(call)
    kind = torch.promote_types(call.dt.dtype, torch.float32)
    K = vandermonde_product(step, drive.reshape(-1, *step.shape), call.length, kind)
    return K.reshape(*call.C.shape[:-1], call.length).to(call.dt.dtype)


def discretise(call: S4DKernelCall) -> tuple[Tensor, Tensor]:
    """Return dt A [H, N] and 2 C (exp(dt A) - 1) / A [(W,) H, N], complex128."""
    wide = call.A.to(torch.complex128)
    step = call.dt.double()[:, None] * wide
    return step, call.C.to(torch.complex128) * (2 * torch.expm1(step) / wide)


def vandermonde_product(step: Tensor, drive: Tensor, length: int, kind: torch.dtype) -> Tensor:
    """Return Re sum_n drive_n exp(l step_n) [W, H, length]: step [H, N], drive [W, H, N]; factors rounded to `kind`."""
    width = 1 << math.ceil(math.log2(length) / 2)
    rows = -(-length // width)
    index = _indices(max(rows, width), step)
    left = drive[:, :, None] * (width * index[:rows, None] * step[:, None]).exp()  # [W, H, rows, N]
    right = (step[..., None] * index[:width]).exp()  # [H, N, width]
    (a, b), (c, d) = ((v.real.to(kind), v.imag.to(kind)) for v in (left.movedim(0, 1).flatten(1, 2), right))
    parts = a @ c - b @ d  # [H, W rows, width]
    return parts.reshape(len(step), len(drive), -1).movedim(0, 1)[..., :length]


def _indices(count: int, near: Tensor) -> Tensor:
    return torch.arange(count, device=near.device, dtype=torch.float64)

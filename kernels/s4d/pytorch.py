"""S4D's kernel from two small Vandermonde matrices, as l = a width + b splits exp(l s) into two factors.

Of H N L exponentials some H N 2 sqrt(L) are left, and of the tensor [H, N, L] nothing; for short kernels, which are
all exponentials at once, that is not worth its operations. Exponents, which turn many times around the circle, are made
in double precision: their rounding would be most of the error.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["anything", "direct", "direct_refuses", "factored", "factored_refuses", "held", "product"]

FEW = 1 << 13  # exponentials that are made at once without a thought


def anything(A: Tensor, C: Tensor, dt: Tensor, length: int) -> str | None:
    return None


def factored_refuses(A: Tensor, C: Tensor, dt: Tensor, length: int) -> str | None:
    return f"{A.device.type} has no double precision" if A.device.type == "mps" else None


def direct_refuses(A: Tensor, C: Tensor, dt: Tensor, length: int) -> str | None:
    if A.numel() * length > FEW:
        return f"{A.numel() * length} exponentials; beyond {FEW} two factors are less work"
    return factored_refuses(A, C, dt, length)


def direct(A: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    step, drive = held(A, C, dt)
    power = (step[..., None] * _places(length, A)).exp()  # [H, N, L]
    return (drive[..., None] * power).sum(-2).real.to(dt.dtype)


def factored(A: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    step, drive = held(A, C, dt)
    K = product(step, drive.reshape(-1, *A.shape), length, torch.promote_types(dt.dtype, torch.float32))
    return K.reshape(*C.shape[:-1], length).to(dt.dtype)


def held(A: Tensor, C: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """dt A [H, N] and 2 C (exp(dt A) - 1) / A [(W,) H, N], complex128."""
    wide = A.to(torch.complex128)
    step = dt.double()[:, None] * wide
    return step, C.to(torch.complex128) * (2 * torch.expm1(step) / wide)


def product(step: Tensor, drive: Tensor, length: int, kind: torch.dtype) -> Tensor:
    """Re sum_n drive_n exp(l step_n) [W, H, length]: step [H, N], drive [W, H, N]; factors are rounded to `kind`."""
    width = 1 << math.ceil(math.log2(length) / 2)
    rows = -(-length // width)
    place = _places(max(rows, width), step)
    left = drive[:, :, None] * (width * place[:rows, None] * step[:, None]).exp()  # [W, H, rows, N]
    right = (step[..., None] * place[:width]).exp()  # [H, N, width]
    (a, b), (c, d) = ((v.real.to(kind), v.imag.to(kind)) for v in (left.movedim(0, 1).flatten(1, 2), right))
    parts = a @ c - b @ d  # [H, W rows, width]
    return parts.reshape(len(step), len(drive), -1).movedim(0, 1)[..., :length]


def _places(count: int, near: Tensor) -> Tensor:
    return torch.arange(count, device=near.device, dtype=torch.float64)

"""S4D's kernel as products of two small Vandermonde matrices, as l = a width + b splits exp(l s) into two factors.

Of H N L exponentials some H N 2 sqrt(L) are left, and of the tensor [H, N, L] nothing. The exponents, which turn many
times around the circle, are made in double precision: their rounding would be most of the error.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["anything", "refuses", "run"]


def anything(A: Tensor, C: Tensor, dt: Tensor, length: int) -> str | None:
    return None


def refuses(A: Tensor, C: Tensor, dt: Tensor, length: int) -> str | None:
    return f"{A.device.type} has no double precision" if A.device.type == "mps" else None


def run(A: Tensor, C: Tensor, dt: Tensor, length: int) -> Tensor:
    wide, kind = torch.complex128, torch.promote_types(dt.dtype, torch.float32)
    width = 1 << math.ceil(math.log2(length) / 2)
    rows = -(-length // width)
    step = dt.double()[:, None] * A.to(wide)  # [H, N]
    drive = 2 * C.to(wide) * torch.expm1(step) / A.to(wide)
    place = torch.arange(max(rows, width), device=A.device, dtype=torch.float64)
    left = drive[:, None] * (width * place[:rows, None] * step[:, None]).exp()  # [H, rows, N]
    right = (step[..., None] * place[:width]).exp()  # [H, N, width]
    (a, b), (c, d) = ((v.real.to(kind), v.imag.to(kind)) for v in (left, right))
    return (a @ c - b @ d).flatten(1)[:, :length].to(dt.dtype)

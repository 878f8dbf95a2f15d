"""Activations in PyTorch's own operations; differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

__all__ = ["gelu_tanh", "gelu_tanh_refuses", "rational", "rational_refuses", "swiglu", "swiglu_refuses"]


def swiglu_refuses(ab: Tensor) -> str | None:
    return None


def swiglu(ab: Tensor) -> Tensor:
    a, b = ab.chunk(2, -1)
    return silu(a) * b


def gelu_tanh_refuses(x: Tensor, bias: Tensor | None) -> str | None:
    return None


def gelu_tanh(x: Tensor, bias: Tensor | None) -> Tensor:
    return gelu(x if bias is None else x + bias, approximate="tanh")


def rational_refuses(x: Tensor, numerator: Tensor, denominator: Tensor) -> str | None:
    return None


def rational(x: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """Horner's rule, inside with at least float32's precision: powers of x leave bfloat16's soon."""
    kind = torch.promote_types(x.dtype, torch.float32)
    wide = x.to(kind).reshape(*x.shape[:-1], len(denominator), -1)  # [..., G, D / G]
    a, b = numerator.to(kind)[..., None], denominator.to(kind).abs()[..., None]  # [1 or G, m + 1, 1], [G, n, 1]
    size = wide.abs()
    top, low = a[:, -1], b[:, -1]
    for i in range(a.shape[1] - 2, -1, -1):
        top = torch.addcmul(a[:, i], top, wide)
    for j in range(b.shape[1] - 2, -1, -1):
        low = torch.addcmul(b[:, j], low, size)
    return (top / torch.addcmul(torch.ones_like(low[:1]), low, size)).flatten(-2).to(x.dtype)

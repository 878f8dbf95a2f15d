"""Activations in PyTorch's own operations; differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from gen.kernels.activation.call import GeluCall, RationalCall

__all__ = ["gelu_tanh", "rational", "swiglu"]


def swiglu(ab: Tensor) -> Tensor:
    """Compute silu(a) b."""
    a, b = ab.chunk(2, -1)
    return silu(a) * b


def gelu_tanh(call: GeluCall) -> Tensor:
    """Compute GELU(x + bias) in its tanh form."""
    return gelu(call.x if call.bias is None else call.x + call.bias, approximate="tanh")


def rational(call: RationalCall) -> Tensor:
    """Compute Horner's rule, inside with at least float32's precision: powers of x leave bfloat16's soon."""
    x, numerator, denominator = call
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

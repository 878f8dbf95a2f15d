"""The linear layer as its formula stands.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gen.kernels.linear.onednn import Packed

__all__ = ["linear"]


def linear(x: Tensor, weight: Tensor | Packed, bias: Tensor | None, activation: str | None) -> Tensor:
    """activation(x weight^T + bias)."""
    dense = weight.dense() if isinstance(weight, Packed) else weight
    out = x.double() @ dense.double().mT + (0 if bias is None else bias.double())
    if activation == "gelu":
        out = out * torch.erfc(-out / math.sqrt(2)) / 2
    elif activation is not None:  # gelu's tanh form is x sigmoid(2 sqrt(2 / pi) (x + .044715 x^3))
        inner = out if activation == "silu" else math.sqrt(8 / math.pi) * (out + 0.044715 * out**3)
        out = out * torch.sigmoid(inner)
    return out.to(x.dtype)

"""The linear layer as its formula stands.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gen.kernels.linear.call import LinearCall
from gen.kernels.linear.packed_weight import PackedWeight

__all__ = ["linear"]


def linear(call: LinearCall) -> Tensor:
    """Return activation(x weight^T + bias).

    Args:
        call: the complete arguments.
    """
    x, weight, bias, activation = call
    dense = weight.dense() if isinstance(weight, PackedWeight) else weight
    out = x.double() @ dense.double().mT + (0 if bias is None else bias.double())
    if activation == "gelu":
        out = out * torch.erfc(-out / math.sqrt(2)) / 2
    elif activation is not None:  # gelu's tanh form is x sigmoid(2 sqrt(2 / pi) (x + .044715 x^3))
        inner = out if activation == "silu" else math.sqrt(8 / math.pi) * (out + 0.044715 * out**3)
        out = out * torch.sigmoid(inner)
    return out.to(x.dtype)

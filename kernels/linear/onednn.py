"""Linear layers by oneDNN with packed weights, the activation applied before the result is stored."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.lib.autograd import transform_reason
from gen.kernels.linear.call import LinearCall
from gen.kernels.linear.packed_weight import ONEDNN, PackedWeight

__all__ = ["incompatible_reason", "run"]

# Their names in PyTorch's fusions of oneDNN: what, and which form of it.
FUSED = {None: ("none", ""), "gelu_tanh": ("gelu", "tanh"), "gelu": ("gelu", "none"), "silu": ("swish", "")}


def incompatible_reason(call: LinearCall) -> str | None:
    """Return why oneDNN cannot compute the call, or None."""
    x, weight, bias, _ = call
    if not isinstance(weight, PackedWeight):
        return "weights are not packed"
    if x.dtype != weight.dtype or (bias is not None and bias.dtype != weight.dtype):
        return f"x or bias is not in the weights' {weight.dtype}"
    if not x.numel():
        return "x is empty"
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return "a gradient is needed"
    return transform_reason(x, bias)


def run(call: LinearCall) -> Tensor:
    """Compute the product and its activation in one pass."""
    assert isinstance(call.weight, PackedWeight)
    kind, form = FUSED[call.activation]
    return ONEDNN._linear_pointwise(call.x, call.weight.blocked, call.bias, kind, [], form)

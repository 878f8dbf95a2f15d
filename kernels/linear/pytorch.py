"""Linear layers in PyTorch's own operations; packed weights are laid out anew at every call."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import gelu, silu
from torch.nn.functional import linear as product

from gen.kernels.linear.call import LinearCall
from gen.kernels.linear.packed_weight import PackedWeight

__all__ = ["run"]


def run(call: LinearCall) -> Tensor:
    """Compute the product and then its activation."""
    x, weight, bias, activation = call
    out = product(x, weight.dense() if isinstance(weight, PackedWeight) else weight, bias)
    if activation is None:
        return out
    return silu(out) if activation == "silu" else gelu(out, approximate="tanh" if activation == "gelu_tanh" else "none")

"""Linear layers in PyTorch's own operations; packed weights are laid out anew at every call."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import gelu, silu
from torch.nn.functional import linear as product

from gen.kernels.linear.onednn import Packed

__all__ = ["refuses", "run"]


def refuses(x: Tensor, weight: Tensor | Packed, bias: Tensor | None, activation: str | None) -> str | None:
    return None


def run(x: Tensor, weight: Tensor | Packed, bias: Tensor | None, activation: str | None) -> Tensor:
    out = product(x, weight.dense() if isinstance(weight, Packed) else weight, bias)
    if activation is None:
        return out
    return silu(out) if activation == "silu" else gelu(out, approximate="tanh" if activation == "gelu_tanh" else "none")

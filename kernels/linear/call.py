"""The complete arguments of a linear layer, which every back end is given."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from gen.kernels.linear.packed_weight import PackedWeight

__all__ = ["Activation", "LinearCall"]

Activation = Literal["gelu_tanh", "gelu", "silu"]


class LinearCall(NamedTuple):
    """activation(x weight^T + bias).

    Attributes:
        x: [..., in].
        weight: [out, in], or packed.
        bias: [out] or None.
        activation: None for none.
    """

    x: Tensor
    weight: Tensor | PackedWeight
    bias: Tensor | None
    activation: Activation | None

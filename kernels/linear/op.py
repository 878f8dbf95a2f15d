"""A product with constant weights, laid out once as the processor reads them, and the activation in the same pass."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from gen.kernels.dispatch import Backend, Op, Refused
from gen.kernels.linear import onednn, pytorch, reference
from gen.kernels.linear.onednn import Packed, unpackable

__all__ = ["Activation", "Packed", "linear", "pack", "unpackable"]

Activation = Literal["gelu_tanh", "gelu", "silu"]


def pack(weight: Tensor) -> Packed:
    """weight [out, in] in oneDNN's layout, a copy; Refused where oneDNN cannot, see `unpackable`."""
    reason = unpackable(weight)
    if reason is not None:
        raise Refused(f"pack: {reason}")
    return Packed.of(weight)


def call(
    x: Tensor, weight: Tensor | Packed, bias: Tensor | None = None, activation: Activation | None = None
) -> tuple[Tensor, Tensor | Packed, Tensor | None, Activation | None]:
    """activation(x weight^T + bias): x [..., in], weight [out, in] or packed, bias [out] -> [..., out].

    activation: None, "gelu_tanh", "gelu" (the exact one) or "silu". Packed weights are constants: x and bias have
    gradients, the weights none. ValueError for sizes that do not fit and for other activations.
    """
    out, size = weight.shape
    if x.ndim < 1 or x.shape[-1] != size:
        raise ValueError(f"linear: x is {list(x.shape)}; for weights {[out, size]} its last size must be {size}")
    if bias is not None and (bias.ndim != 1 or bias.shape[0] != out):
        raise ValueError(f"linear: bias is {list(bias.shape)}; it must be {[out]}")
    if activation not in (None, "gelu_tanh", "gelu", "silu"):
        raise ValueError(f"linear: activation is {activation!r}; it must be None, 'gelu_tanh', 'gelu' or 'silu'")
    return x, weight, bias, activation


linear = Op(
    "linear",
    call,
    (
        Backend("onednn", onednn.refuses, onednn.run),
        Backend("torch", pytorch.refuses, pytorch.run),
        Backend("reference", pytorch.refuses, reference.linear),
    ),
)

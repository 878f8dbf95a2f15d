"""A product with weights that may be packed, and the activation in the same pass."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.dispatch import Backend, op
from gen.kernels.linear import onednn, pytorch, reference
from gen.kernels.linear.call import Activation, LinearCall
from gen.kernels.linear.packed_weight import PackedWeight

__all__ = ["linear"]


@op(
    Backend("onednn", onednn.run, onednn.incompatible_reason),
    Backend("torch", pytorch.run),
    Backend("reference", reference.linear),
)
def linear(
    x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None, activation: Activation | None = None
) -> LinearCall:
    """Compute activation(x weight^T + bias).

    Args:
        x: [..., in].
        weight: [out, in], or packed by `pack`: then a constant, without a gradient.
        bias: [out]; none by default.
        activation: None, "gelu_tanh", "gelu" (the exact one) or "silu".

    Returns:
        [..., out].

    Raises:
        ValueError: for sizes that do not fit and for other activations.
    """
    out, size = weight.shape
    if x.ndim < 1 or x.shape[-1] != size:
        raise ValueError(f"linear: x is {list(x.shape)}; for weights {[out, size]} its last size must be {size}")
    if bias is not None and (bias.ndim != 1 or bias.shape[0] != out):
        raise ValueError(f"linear: bias is {list(bias.shape)}; it must be {[out]}")
    if activation not in (None, "gelu_tanh", "gelu", "silu"):
        raise ValueError(f"linear: activation is {activation!r}; it must be None, 'gelu_tanh', 'gelu' or 'silu'")
    return LinearCall(x, weight, bias, activation)

"""Activations between the products of an MLP."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.activation import pytorch, reference, triton_launch
from gen.kernels.activation.call import GeluCall, RationalCall
from gen.kernels.dispatch import Backend, op

__all__ = ["gelu_tanh", "rational", "swiglu"]


@op(
    Backend("triton", triton_launch.swiglu, triton_launch.contiguous_reason),
    Backend("torch", pytorch.swiglu),
    Backend("reference", reference.swiglu),
)
def swiglu(ab: Tensor) -> Tensor:
    """Compute silu(a) b (Shazeer 2020, arXiv 2002.05202).

    Args:
        ab: [..., 2 H], a and b its halves as one product lays them out.

    Returns:
        [..., H].

    Raises:
        ValueError: if the last size is odd.
    """
    if ab.shape[-1] % 2:
        raise ValueError(f"swiglu: the last size of {list(ab.shape)} must be even")
    return ab


@op(
    Backend("triton", triton_launch.gelu_tanh, triton_launch.gelu_tanh_reason),
    Backend("torch", pytorch.gelu_tanh),
    Backend("reference", reference.gelu_tanh),
)
def gelu_tanh(x: Tensor, bias: Tensor | None = None) -> GeluCall:
    """Compute GELU(x + bias) in its tanh form (Hendrycks & Gimpel 2016, arXiv 1606.08415).

    Args:
        x: [..., D].
        bias: [D]; none by default.

    Returns:
        [..., D].

    Raises:
        ValueError: for a bias of another shape.
    """
    if bias is not None and (bias.ndim != 1 or bias.shape[0] != x.shape[-1]):
        raise ValueError(f"gelu_tanh: bias is {list(bias.shape)}; it must be {list(x.shape[-1:])}")
    return GeluCall(x, bias)


@op(
    Backend("triton", triton_launch.rational, triton_launch.rational_reason),
    Backend("torch", pytorch.rational),
    Backend("reference", reference.rational),
)
def rational(x: Tensor, numerator: Tensor, denominator: Tensor) -> RationalCall:
    """Compute sum_i a_i x^i / (1 + sum_j |b_j| |x|^j), with coefficients for each group of channels.

    (KAT, Yang & Wang 2024, arXiv 2409.10594, equation 12: G = 8, one numerator, m = 5, n = 4.)

    Args:
        x: [..., D]; each of the G groups is D / G channels side by side.
        numerator: a from a_0, [G, m + 1], or [1, m + 1] for all groups.
        denominator: b from b_1, [G, n].

    Returns:
        [..., D].

    Raises:
        ValueError: for other shapes.
    """
    groups = denominator.shape[0]
    if numerator.ndim != 2 or denominator.ndim != 2 or numerator.shape[0] not in (1, groups):
        given = f"{list(numerator.shape)} and {list(denominator.shape)}"
        raise ValueError(f"rational: coefficients are {given}; they must be [1 or G, m + 1] and [G, n]")
    if x.shape[-1] % groups:
        raise ValueError(f"rational: {x.shape[-1]} channels do not divide into {groups} groups")
    return RationalCall(x, numerator, denominator)

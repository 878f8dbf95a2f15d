"""What follows a product in an MLP: SwiGLU, GELU with its bias, and rational functions with learned coefficients."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.activation import pytorch, reference, triton_launch
from gen.kernels.dispatch import Backend, Op

__all__ = ["gelu_tanh", "rational", "swiglu"]


def _swiglu(ab: Tensor) -> tuple[Tensor]:
    """silu(a) b: ab [..., 2 H], a and b its halves as one product lays them out -> [..., H] (Shazeer 2020)."""
    if ab.shape[-1] % 2:
        raise ValueError(f"swiglu: the last size of {list(ab.shape)} must be even")
    return (ab,)


def _gelu_tanh(x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """GELU(x + bias) in its tanh form: x [..., D], bias [D] -> [..., D] (Hendrycks & Gimpel 2016)."""
    if bias is not None and (bias.ndim != 1 or bias.shape[0] != x.shape[-1]):
        raise ValueError(f"gelu_tanh: bias is {list(bias.shape)}; it must be {list(x.shape[-1:])}")
    return x, bias


def _rational(x: Tensor, numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y = sum_i a_i x^i / (1 + sum_j |b_j| |x|^j), with coefficients for each group of channels: [..., D] -> [..., D].

    numerator: a [1 or G, m + 1], from a_0. denominator: b [G, n], from b_1. Each of the G groups is D / G channels side
    by side. (KAT, Yang & Wang 2024, arXiv 2409.10594, equation 12: G = 8, one numerator, m = 5, n = 4.)
    """
    groups = denominator.shape[0]
    if numerator.ndim != 2 or denominator.ndim != 2 or numerator.shape[0] not in (1, groups):
        given = f"{list(numerator.shape)} and {list(denominator.shape)}"
        raise ValueError(f"rational: coefficients are {given}; they must be [1 or G, m + 1] and [G, n]")
    if x.shape[-1] % groups:
        raise ValueError(f"rational: {x.shape[-1]} channels do not divide into {groups} groups")
    return x, numerator, denominator


swiglu = Op(
    "swiglu",
    _swiglu,
    (
        Backend("triton", triton_launch.swiglu_refuses, triton_launch.swiglu),
        Backend("torch", pytorch.swiglu_refuses, pytorch.swiglu),
        Backend("reference", pytorch.swiglu_refuses, reference.swiglu),
    ),
)

gelu_tanh = Op(
    "gelu_tanh",
    _gelu_tanh,
    (
        Backend("triton", triton_launch.gelu_tanh_refuses, triton_launch.gelu_tanh),
        Backend("torch", pytorch.gelu_tanh_refuses, pytorch.gelu_tanh),
        Backend("reference", pytorch.gelu_tanh_refuses, reference.gelu_tanh),
    ),
)

rational = Op(
    "rational",
    _rational,
    (
        Backend("triton", triton_launch.rational_refuses, triton_launch.rational),
        Backend("torch", pytorch.rational_refuses, pytorch.rational),
        Backend("reference", pytorch.rational_refuses, reference.rational),
    ),
)

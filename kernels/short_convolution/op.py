"""Convolution of each channel with a few taps, along any order of the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.dispatch import Backend, op
from gen.kernels.short_convolution import pytorch, reference, triton_launch
from gen.kernels.short_convolution.call import ShortConvolutionCall

__all__ = ["short_convolution"]


@op(
    Backend("triton", triton_launch.run, triton_launch.incompatible_reason),
    Backend("torch", pytorch.run),
    Backend("reference", reference.short_convolution),
)
def short_convolution(
    u: Tensor, weight: Tensor, bias: Tensor, order: Tensor | None = None, reverse: bool = False
) -> ShortConvolutionCall:
    """Compute a causal convolution: bias + sum over k of weight_k times the token taps - 1 - k visits before.

    Before the first token is zero. Tokens stay where they are. (The causal convolution of Mamba, Gu & Dao 2023,
    arXiv 2312.00752, figure 3.)

    Args:
        u: [B, T, H].
        weight: [H, taps]; the last tap is the token's own.
        bias: [H].
        order: int64 [T], the order in which tokens are visited; by default from the first to the last. As in
            gen.kernels.selective_scan.
        reverse: visits them the other way round.

    Returns:
        [B, T, H].

    Raises:
        ValueError: for other shapes, and for an order of another dtype.
    """
    if u.ndim != 3 or weight.ndim != 2 or weight.shape[0] != u.shape[2] or bias.shape != weight.shape[:1]:
        given = ", ".join(str(list(v.shape)) for v in (u, weight, bias))
        raise ValueError(f"short_convolution: u, weight, bias are {given}; they must be [B, T, H], [H, taps] and [H]")
    if order is not None and (order.ndim != 1 or order.shape[0] != u.shape[1] or order.dtype != torch.int64):
        given = f"{order.dtype} {list(order.shape)}"
        raise ValueError(f"short_convolution: order is {given}; it must be torch.int64 [{u.shape[1]}]")
    return ShortConvolutionCall(u, weight, bias, order, reverse)

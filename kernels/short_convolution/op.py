"""Convolution of each channel with a few taps, along any order of the tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.dispatch import Backend, Op
from gen.kernels.short_convolution import pytorch, reference, triton_launch

__all__ = ["short_convolution"]


def _short_convolution(
    u: Tensor, weight: Tensor, bias: Tensor, order: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool]:
    """bias + sum over k of weight_k times the token k places before, the last tap being the token's own: [B, T, H].

    u: [B, T, H]. weight: [H, taps]. bias: [H]. What is before a token is said by order and reverse, which are those of
    gen.kernels.selective_scan, and what is before the first is zero. Tokens stay where they are. (The
    causal convolution of Mamba, Gu & Dao 2023, arXiv 2312.00752, figure 3.)
    """
    if u.ndim != 3 or weight.ndim != 2 or weight.shape[0] != u.shape[2] or bias.shape != weight.shape[:1]:
        given = ", ".join(str(list(v.shape)) for v in (u, weight, bias))
        raise ValueError(f"short_convolution: u, weight, bias are {given}; they must be [B, T, H], [H, taps] and [H]")
    if order is not None and (order.ndim != 1 or order.shape[0] != u.shape[1] or order.dtype != torch.int64):
        given = f"{order.dtype} {list(order.shape)}"
        raise ValueError(f"short_convolution: order is {given}; it must be torch.int64 [{u.shape[1]}]")
    return u, weight, bias, order, reverse


short_convolution = Op(
    "short_convolution",
    _short_convolution,
    (
        Backend("triton", triton_launch.refuses, triton_launch.run),
        Backend("torch", pytorch.anything, pytorch.run),
        Backend("reference", pytorch.anything, reference.short_convolution),
    ),
)

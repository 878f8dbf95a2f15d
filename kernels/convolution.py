"""Convolutions of sequences, each channel with its own kernel: as long as the sequence, and of a few taps."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels import reference
from gen.kernels.backends import (
    convolution_torch,
    convolution_triton,
    short_convolution_torch,
    short_convolution_triton,
)
from gen.kernels.dispatch import Backend, Op

__all__ = ["long_convolution", "short_convolution"]


def _long_convolution(u: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """y_t = sum over s of K_s u_(t-s), each channel with its own K: u [B, T, H], K [H, T] or [H, 2T] -> [B, T, H].

    A K of length 2T also looks ahead: its last T - 1 numbers are those of s = -(T - 1) ... -1, and K_T is not used.
    """
    _, length, channels = u.shape
    if K.ndim != 2 or K.shape[0] != channels or K.shape[1] not in (length, 2 * length):
        allowed = f"[{channels}, {length}] or [{channels}, {2 * length}]"
        raise ValueError(f"long_convolution: K is {list(K.shape)}; it must be {allowed}")
    return u, K


def _short_convolution(
    u: Tensor, weight: Tensor, bias: Tensor, order: Tensor | None = None, reverse: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool]:
    """bias + sum over k of weight_k times the token k places before, the last tap being the token's own: [B, T, H].

    u: [B, T, H]. weight: [H, taps]. bias: [H]. What is before a token is said by order and reverse, which are those of
    gen.kernels.state_space.selective_scan, and what is before the first is zero. Tokens stay where they are. (The
    causal convolution of Mamba, Gu & Dao 2023, arXiv 2312.00752, figure 3.)
    """
    if u.ndim != 3 or weight.ndim != 2 or weight.shape[0] != u.shape[2] or bias.shape != weight.shape[:1]:
        given = ", ".join(str(list(v.shape)) for v in (u, weight, bias))
        raise ValueError(f"short_convolution: u, weight, bias are {given}; they must be [B, T, H], [H, taps] and [H]")
    if order is not None and (order.ndim != 1 or order.shape[0] != u.shape[1] or order.dtype != torch.int64):
        given = f"{order.dtype} {list(order.shape)}"
        raise ValueError(f"short_convolution: order is {given}; it must be torch.int64 [{u.shape[1]}]")
    return u, weight, bias, order, reverse


def _anything(u: Tensor, K: Tensor) -> str | None:
    return None


# On a processor the matrices won only in batches of 64 and more: they are for dtypes that have no Fourier transform.
long_convolution = Op(
    "long_convolution",
    _long_convolution,
    (
        Backend("triton", convolution_triton.refuses, convolution_triton.run),
        Backend("fft", convolution_torch.fft_refuses, convolution_torch.fft),
        Backend("toeplitz", convolution_torch.toeplitz_refuses, convolution_torch.toeplitz),
        Backend("reference", _anything, reference.long_convolution),
    ),
)

short_convolution = Op(
    "short_convolution",
    _short_convolution,
    (
        Backend("triton", short_convolution_triton.refuses, short_convolution_triton.run),
        Backend("torch", short_convolution_torch.anything, short_convolution_torch.run),
        Backend("reference", short_convolution_torch.anything, reference.short_convolution),
    ),
)

"""Convolution of each channel with a kernel as long as the sequence."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.dispatch import Backend, Op
from gen.kernels.long_convolution import pytorch, reference, triton_launch

__all__ = ["long_convolution"]


def _long_convolution(u: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """y_t = sum over s of K_s u_(t-s), each channel with its own K: u [B, T, H], K [H, T] or [H, 2T] -> [B, T, H].

    A K of length 2T also looks ahead: its last T - 1 numbers are those of s = -(T - 1) ... -1, and K_T is not used.
    """
    _, length, channels = u.shape
    if K.ndim != 2 or K.shape[0] != channels or K.shape[1] not in (length, 2 * length):
        allowed = f"[{channels}, {length}] or [{channels}, {2 * length}]"
        raise ValueError(f"long_convolution: K is {list(K.shape)}; it must be {allowed}")
    return u, K


def _anything(u: Tensor, K: Tensor) -> str | None:
    return None


# On a processor the matrices won only in batches of 64 and more: they are for dtypes that have no Fourier transform.
long_convolution = Op(
    "long_convolution",
    _long_convolution,
    (
        Backend("triton", triton_launch.refuses, triton_launch.run),
        Backend("fft", pytorch.fft_refuses, pytorch.fft),
        Backend("toeplitz", pytorch.toeplitz_refuses, pytorch.toeplitz),
        Backend("reference", _anything, reference.long_convolution),
    ),
)

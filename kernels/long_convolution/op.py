"""Convolution of each channel with a kernel as long as the sequence."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.dispatch import Backend, op
from gen.kernels.long_convolution import pytorch, reference, triton_launch
from gen.kernels.long_convolution.call import LongConvolutionCall

__all__ = ["long_convolution"]


# On a processor the matrices won only in batches of 64 and more: they are for dtypes that have no Fourier transform.
@op(
    Backend("triton", triton_launch.run, triton_launch.incompatible_reason),
    Backend("fft", pytorch.fft, pytorch.fft_reason),
    Backend("toeplitz", pytorch.toeplitz, pytorch.toeplitz_reason),
    Backend("reference", reference.long_convolution),
)
def long_convolution(u: Tensor, K: Tensor) -> LongConvolutionCall:
    """Compute y_t = sum over s of K_s u_(t-s), each channel with its own K.

    Args:
        u: [B, T, H].
        K: [H, T], or [H, 2 T] to look ahead too: its last T - 1 numbers are those of s = -(T - 1) ... -1, and K_T is
            not used.

    Returns:
        y [B, T, H].

    Raises:
        ValueError: for a K of another shape.
    """
    _, length, channels = u.shape
    if K.ndim != 2 or K.shape[0] != channels or K.shape[1] not in (length, 2 * length):
        allowed = f"[{channels}, {length}] or [{channels}, {2 * length}]"
        raise ValueError(f"long_convolution: K is {list(K.shape)}; it must be {allowed}")
    return LongConvolutionCall(u, K)

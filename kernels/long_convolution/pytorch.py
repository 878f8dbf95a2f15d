"""Long convolution by Fourier transforms, and for short sequences as a product with a Toeplitz matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.lib.triton_support import mixed_dtypes_reason
from gen.kernels.long_convolution.call import LongConvolutionCall

__all__ = ["fft", "fft_reason", "toeplitz", "toeplitz_product", "toeplitz_reason"]

LONGEST = 512  # tokens up to which Toeplitz matrices are built
AT_ONCE = 1 << 24  # numbers of Toeplitz matrices that are built at once


def toeplitz_reason(call: LongConvolutionCall) -> str | None:
    """Return why no matrix is built, or None."""
    length = call.u.shape[1]
    long = f"{length} tokens; matrices are built for up to {LONGEST}" if length > LONGEST else None
    return mixed_dtypes_reason(*call) or long


def toeplitz(call: LongConvolutionCall) -> Tensor:
    """Compute a product of matrices for each channel."""
    return toeplitz_product(call.u.permute(2, 0, 1), call.K).permute(1, 2, 0)


def toeplitz_product(u: Tensor, K: Tensor) -> Tensor:
    """Return each channel's matrix [T, T] times its [T, B]: u [H, B, T] -> [H, B, T].

    On reversed tokens the matrix is a view of K's own numbers.
    """
    channels, _, length = u.shape
    ahead = K.new_zeros(channels, length - 1) if K.shape[1] == length else K[:, length + 1 :]
    # K's gradient sums T numbers for each of its own, which is why windows lie on it in at least float32.
    wide = torch.cat([ahead, K[:, :length]], 1).to(torch.promote_types(K.dtype, torch.float32))
    windows = wide.unfold(1, length, 1)  # [H, T, T] of the 2T - 1 numbers
    reverse = u.flip(2).mT  # [H, T, B]
    step = max(1, AT_ONCE // length**2)
    parts = [windows[low : low + step].to(u.dtype) @ reverse[low : low + step] for low in range(0, channels, step)]
    return (torch.cat(parts) if len(parts) > 1 else parts[0]).mT


def fft_reason(call: LongConvolutionCall) -> str | None:
    """Return why there is no Fourier transform, or None."""
    if not call.u.numel():
        return "u is empty"
    for v in call:
        if v.dtype not in (torch.float32, torch.float64):
            return f"no Fourier transform of {v.dtype}"
    return None


def fft(call: LongConvolutionCall) -> Tensor:
    """Compute the product of the Fourier transforms of padded sequences."""
    n = 2 * call.u.shape[1]
    product = torch.fft.rfft(call.u, n=n, dim=1) * torch.fft.rfft(call.K, n=n).mT
    return torch.fft.irfft(product, n=n, dim=1)[:, : call.u.shape[1]]  # of [B, 2T, H]

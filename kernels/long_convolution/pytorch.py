"""Long convolution by Fourier transforms, and for short sequences as a product with a Toeplitz matrix."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fft", "fft_refuses", "matrices", "toeplitz", "toeplitz_refuses"]

LONGEST = 512  # tokens that a Toeplitz matrix is made for
AT_ONCE = 1 << 24  # numbers of Toeplitz matrices that are made at once


def toeplitz_refuses(u: Tensor, K: Tensor) -> str | None:
    if u.dtype != K.dtype:
        return f"mixed dtypes {u.dtype} and {K.dtype}"
    if u.shape[1] > LONGEST:
        return f"{u.shape[1]} tokens; matrices are made for up to {LONGEST}"
    return None


def toeplitz(u: Tensor, K: Tensor) -> Tensor:
    return matrices(u.permute(2, 0, 1), K).permute(1, 2, 0)


def matrices(u: Tensor, K: Tensor) -> Tensor:
    """u [H, B, T] -> [H, B, T]: each channel's matrix [T, T] times its [T, B].

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


def fft_refuses(u: Tensor, K: Tensor) -> str | None:
    if not u.numel():
        return "u is empty"
    for v in (u, K):
        if v.dtype not in (torch.float32, torch.float64):
            return f"no Fourier transform of {v.dtype}"
    return None


def fft(u: Tensor, K: Tensor) -> Tensor:
    n = 2 * u.shape[1]
    product = torch.fft.rfft(u, n=n, dim=1) * torch.fft.rfft(K, n=n).mT
    y: Tensor = torch.fft.irfft(product, n=n, dim=1)  # [B, 2T, H]
    return y[:, : u.shape[1]]

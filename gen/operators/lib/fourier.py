"""Orthonormal Fourier and Hartley transforms over the last dimensions of real tensors."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["as_complex", "as_real", "fourier", "hartley", "inverse_fourier"]


def fourier(x: Tensor, n: int) -> Tensor:
    """Return the orthonormal discrete Fourier transform over the last n dimensions.

    Args:
        x: real or complex.
        n: number of dimensions.
    """
    return torch.fft.fftn(x, dim=tuple(range(-n, 0)), norm="ortho")


def inverse_fourier(x: Tensor, n: int) -> Tensor:
    """Return the inverse of `fourier`, complex.

    Args:
        x: complex.
        n: number of dimensions.
    """
    return torch.fft.ifftn(x, dim=tuple(range(-n, 0)), norm="ortho")


def hartley(x: Tensor, n: int) -> Tensor:
    """Return the discrete Hartley transform, real part less imaginary part of Fourier's; it is its own inverse.

    A circular convolution with a symmetric kernel is diagonal in it, as in Fourier's, and it is real.

    Args:
        x: real.
        n: number of last dimensions.
    """
    c = fourier(x, n)
    return c.real - c.imag


def as_real(x: Tensor, dim: int) -> Tensor:
    """Return real and imaginary parts as a new dimension of two.

    Args:
        x: complex.
        dim: where the new dimension is, negative.
    """
    return torch.stack((x.real, x.imag), dim)


def as_complex(x: Tensor, dim: int) -> Tensor:
    """Return the inverse of `as_real`.

    Args:
        x: real.
        dim: of size two.
    """
    real, imaginary = x.unbind(dim)
    return torch.complex(real, imaginary)

"""Bicubic downsampling as super-resolution benchmarks have it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.operators.lib.decomposed import Separable
from gen.operators.lib.operator import spatial

__all__ = ["Bicubic"]


@dataclass(frozen=True)
class Bicubic:
    """Bicubic downsampling with antialiasing, MATLAB's imresize before its rounding to 8 bits.

    Keys' cubic of a = -1/2 (1981, eq. 15), stretched by the factor, around half-pixel centres; edges are mirrored with
    the edge pixel repeated. PyTorch's bicubic has a = -3/4.

    Attributes:
        factor: of the sizes, which it divides.
    """

    factor: int = 2

    def __post_init__(self) -> None:
        check_fields(self, factor="[1, 64]")

    def on(self, shape: tuple[int, ...]) -> Separable:
        """Return the operator on samples [C, H, W], or of any other number of spatial dimensions."""
        sizes = spatial(shape)
        if any(size % self.factor for size in sizes):
            raise UserError(f"Bicubic: factor = {self.factor} does not divide {list(sizes)}")
        first = len(shape) - len(sizes)
        return Separable(shape, {first + i: _weights(n, self.factor) for i, n in enumerate(sizes)})


def _weights(n: int, factor: int) -> Tensor:
    """Return the matrix [n / factor, n] of one dimension, float64."""
    centre = (torch.arange(n // factor, dtype=torch.float64) + 0.5) * factor - 0.5
    taps = (centre - 2 * factor).floor()[:, None] + torch.arange(4 * factor + 2, dtype=torch.float64)
    weights = _cubic((centre[:, None] - taps) / factor)
    mirrored = taps.long() % (2 * n)
    mirrored = torch.where(mirrored < n, mirrored, 2 * n - 1 - mirrored)
    matrix = torch.zeros(n // factor, n, dtype=torch.float64)
    return matrix.scatter_add_(1, mirrored, weights / weights.sum(1, keepdim=True))


def _cubic(x: Tensor) -> Tensor:
    """Return Keys' kernel with a = -1/2."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0))

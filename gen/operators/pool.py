"""Means of blocks of pixels: area downsampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.operators.lib.decomposed import Separable
from gen.operators.lib.operator import spatial

__all__ = ["Pool"]


@dataclass(frozen=True)
class Pool:
    """The mean of each block of `factor` pixels in every spatial dimension, factor^2 pixels of a picture.

    Attributes:
        factor: side of a block; it divides the sizes.
    """

    factor: int = 2

    def __post_init__(self) -> None:
        check_fields(self, factor="[1, 4096]")

    def on(self, shape: tuple[int, ...]) -> Separable:
        """Return the operator on samples [C, H, W], or of any other number of spatial dimensions."""
        sizes = spatial(shape)
        if any(size % self.factor for size in sizes):
            raise UserError(f"Pool: factor = {self.factor} does not divide {list(sizes)}")
        row = torch.full((1, self.factor), 1 / self.factor, dtype=torch.float64)
        first = len(shape) - len(sizes)
        return Separable(shape, {first + i: torch.block_diag(*[row] * (n // self.factor)) for i, n in enumerate(sizes)})

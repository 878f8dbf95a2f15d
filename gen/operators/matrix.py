"""Any matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.operators.lib.decomposed import Dense

__all__ = ["Matrix"]


@dataclass(frozen=True)
class Matrix:
    """The product of a matrix and the sample, all its dimensions in one row.

    Attributes:
        rows: the matrix, row by row; as many columns as the sample has numbers.
    """

    rows: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        check_fields(self)
        if len({len(row) for row in self.rows}) > 1:
            raise UserError(f"Matrix: rows of {sorted({len(row) for row in self.rows})} numbers; they must be as long")

    def on(self, shape: tuple[int, ...]) -> Dense:
        """Return the operator on samples of a shape with as many numbers as there are columns."""
        return Dense(shape, torch.tensor(self.rows, dtype=torch.float64))

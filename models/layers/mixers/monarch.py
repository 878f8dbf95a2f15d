"""Hyena's gates around a matrix that is the same for all tokens' contents, and for no two distances."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.models.layers.mixers.hyena import HyenaLayer

__all__ = ["Monarch", "MonarchMatrix", "monarch"]


@dataclass(frozen=True)
class Monarch:
    """u1 * M (u2 * v) with a Monarch matrix M in each head: what hyena gains by its convolution is the difference.

    M mixes the tokens of every column of the grid by a matrix of that column's own, and then those of every row: r c
    (r + c) numbers for r rows and c columns where all pairs of tokens would be r^2 c^2 (Dao et al. 2022, arXiv
    2204.00595; Fourier's transform is one, so that two make a convolution). A sequence is cut into lines of equal
    length, about as many as each is long.

    Attributes:
        heads: groups of channels, of one M each.
        short: length of the short convolution before the gates, odd.
    """

    heads: int = 4
    short: int = 3

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)", short="[1, 31]")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width on a grid."""
        rows, columns = grid
        if rows == 1:
            rows = max(n for n in range(1, columns + 1) if columns % n == 0 and n * n <= columns)
            columns //= rows
        return HyenaLayer(width, self.short, functools.partial(MonarchMatrix, self.heads, rows, columns))


def monarch(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Return y_kl = sum over i of across_kli sum over j of down_ikj x_ji, [B, rows, columns, H, e].

    Args:
        x: [B, rows, columns, H, e].
        down: of every column, [H, columns, rows, rows].
        across: of every row, [H, rows, columns, columns].
    """
    mixed = torch.einsum("hikj,bjihe->bkihe", down, x)
    return torch.einsum("hkli,bkihe->bklhe", across, mixed)


class MonarchMatrix(nn.Module):
    """Tokens [B, rows columns, width] -> the same shape, each head by its own matrix.

    Args:
        heads, rows, columns: see Monarch.
    """

    def __init__(self, heads: int, rows: int, columns: int):
        super().__init__()
        self.heads, self.grid = heads, (rows, columns)
        self.down = nn.Parameter(torch.randn(heads, columns, rows, rows) * rows**-0.5)
        self.across = nn.Parameter(torch.randn(heads, rows, columns, columns) * columns**-0.5)

    def forward(self, h: Tensor) -> Tensor:
        grid = h.unflatten(-1, (self.heads, -1)).unflatten(1, self.grid)
        return monarch(grid, self.down, self.across).flatten(3).flatten(1, 2)

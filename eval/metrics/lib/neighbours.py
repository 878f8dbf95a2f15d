"""Nearest neighbours in large sets of rows, a block of distances at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["OwnNeighbours", "nearest", "own_distances", "squared_distances"]

ROWS, COLUMNS = 512, 2048  # of a block of distances between two sets
SIDE = 1024  # of a block of distances within a set
EXACT = 256  # dimensions up to which distances are computed in float64
ROUNDING = 8  # units of rounding of |x|^2 + |y|^2 below which a squared distance is 0: copies are at distance 0


def squared_distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Iterate over blocks of the squared distances between two sets, |x|^2 - 2 x.y + |y|^2.

    In float64 if either set is, or up to 256 dimensions, where distances may be far below norms and products cost
    little; else in float32. What is rounding alone is 0.

    Args:
        x: rows [N, D].
        y: rows [M, D].

    Yields:
        Rows of x, rows of y, and their distances [rows, columns], to be used before the next.
    """
    dtype = product_type(x, y)
    squares = squared_lengths(x, dtype), squared_lengths(y, dtype)
    for rows in slices(len(x), ROWS):
        part = x[rows].to(dtype)
        for cols in slices(len(y), COLUMNS):
            yield rows, cols, expanded(part, y[cols].to(dtype), squares[0][rows], squares[1][cols])


def own_distances(x: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """Iterate over the blocks on and above the diagonal of a set's squared distances, inf to each row itself.

    Args:
        x: rows [N, D].

    Yields:
        Rows, columns, and their distances [rows, columns], to be used before the next.
    """
    dtype = product_type(x)
    squares, parts = squared_lengths(x, dtype), slices(len(x), SIDE)
    for i, rows in enumerate(parts):
        part = x[rows].to(dtype)
        for cols in parts[i:]:
            other = part if cols == rows else x[cols].to(dtype)
            distances = expanded(part, other, squares[rows], squares[cols])
            yield rows, cols, distances.fill_diagonal_(torch.inf) if cols == rows else distances


def product_type(*sets: Tensor) -> torch.dtype:
    """Return the type that distances of rows are computed in."""
    exact = sets[0].shape[1] <= EXACT or any(rows.dtype == torch.float64 for rows in sets)
    return torch.float64 if exact else torch.float32


def slices(n: int, size: int) -> list[slice]:
    """Return slices of so many rows that cover n rows in order."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def squared_lengths(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return |x|^2 of each row, [N]."""
    squares = torch.empty(len(x), dtype=dtype)
    for rows in slices(len(x), SIDE):
        squares[rows] = (x[rows].to(dtype) ** 2).sum(1)
    return squares


def expanded(x: Tensor, y: Tensor, x_squares: Tensor, y_squares: Tensor) -> Tensor:
    """Return squared distances [N, M] from products and squared lengths."""
    sums = x_squares[:, None] + y_squares
    distances = torch.addmm(sums, x, y.T, alpha=-2)
    return distances.masked_fill_(distances <= sums.mul_(ROUNDING * torch.finfo(x.dtype).eps), 0.0)


class Closest:
    """The nearest of all columns that were added, for each row.

    Args:
        rows: number of rows.
        k: neighbours of each.
        dtype: of distances.
    """

    def __init__(self, rows: int, k: int, dtype: torch.dtype) -> None:
        self.values = torch.full((rows, k), torch.inf, dtype=dtype)
        self.indices = torch.zeros(rows, k, dtype=torch.int64)

    def add(self, rows: slice, cols: slice, distances: Tensor) -> None:
        """Add distances [rows, columns]."""
        k = self.values.shape[1]
        close = distances.topk(min(k, distances.shape[1]), largest=False, sorted=False)
        self.values[rows], order = torch.cat([self.values[rows], close.values], 1).topk(k, largest=False)
        self.indices[rows] = torch.cat([self.indices[rows], close.indices + cols.start], 1).gather(1, order)


def nearest(x: Tensor, y: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest rows of y for each row of x.

    Args:
        x: rows [N, D].
        y: rows [M, D].
        k: neighbours of a row.

    Returns:
        Squared distances [N, k], rising, inf where y has fewer rows, and their indices in y, int64 [N, k].
    """
    closest = Closest(len(x), k, product_type(x, y))
    for rows, cols, distances in squared_distances(x, y):
        closest.add(rows, cols, distances)
    return closest.values, closest.indices


class OwnNeighbours:
    """The nearest other rows of each row of a set, from one pass over half of its distances.

    Args:
        rows: [N, D].
        most: neighbours of a row that are wanted at most; more take another pass.
    """

    def __init__(self, rows: Tensor, most: int = 1) -> None:
        self.rows, self.most = rows, most
        self._closest: Closest | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def nearest(self, k: int) -> tuple[Tensor, Tensor]:
        """Return squared distances [N, k], rising, inf where there are fewer rows, and indices, int64 [N, k].

        Args:
            k: neighbours of a row.
        """
        if self._closest is None or k > self.most:
            self.most = max(k, self.most)
            self._closest = closest = Closest(len(self), self.most, product_type(self.rows))
            for rows, cols, distances in own_distances(self.rows):
                closest.add(rows, cols, distances)
                if rows != cols:
                    closest.add(cols, rows, distances.T.contiguous())
        return self._closest.values[:, :k], self._closest.indices[:, :k]

    def radii(self, k: int) -> Tensor:
        """Return squared distances to the k-th nearest other row, [N].

        Args:
            k: the neighbour.
        """
        return self.nearest(k)[0][:, -1]

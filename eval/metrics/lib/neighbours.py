"""Nearest neighbours and balls of large sets of rows, a block of distances at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gen.config.errors import UserError

__all__ = ["ball_counts", "ball_radii", "nearest", "squared_distances"]

ROWS, COLUMNS = 512, 2048  # of a block of distances
EXACT = 256  # dimensions up to which distances are computed in float64
ROUNDING = 8  # units of rounding of |x|^2 + |y|^2 below which a squared distance is 0: copies are at distance 0


def squared_distances(x: Tensor, y: Tensor, columns: int = COLUMNS) -> Iterator[tuple[slice, slice, Tensor]]:
    """Iterate over blocks of the squared distances between two sets, |x|^2 - 2 x.y + |y|^2.

    In float64 if either set is, or up to 256 dimensions, where distances may be far below norms and products cost
    little; else in float32. What is rounding alone is 0.

    Args:
        x: rows [N, D].
        y: rows [M, D].
        columns: of a block, at most.

    Yields:
        Rows of x, rows of y, and their distances [rows, columns], to be used before the next.
    """
    exact = x.shape[1] <= EXACT or torch.float64 in (x.dtype, y.dtype)
    dtype = torch.float64 if exact else torch.float32
    limit = ROUNDING * torch.finfo(dtype).eps
    squares = [torch.cat([(part.to(dtype) ** 2).sum(1) for part in rows.split(COLUMNS)]) for rows in (x, y)]
    for start in range(0, len(x), ROWS):
        rows = slice(start, min(start + ROWS, len(x)))
        part, across = x[rows].to(dtype), squares[0][rows, None]
        for first in range(0, len(y), columns):
            cols = slice(first, min(first + columns, len(y)))
            sums = across + squares[1][cols]
            distances = torch.addmm(sums, part, y[cols].to(dtype).T, alpha=-2)
            yield rows, cols, distances.masked_fill_(distances <= sums.mul_(limit), 0.0)


def nearest(x: Tensor, y: Tensor, k: int, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the k nearest rows of y for each row of x.

    Args:
        x: rows [N, D].
        y: rows [M, D].
        k: neighbours of a row.
        own: int64 [M], the row of x that each row of y is itself: no row is its own neighbour. None if there are none.

    Returns:
        Squared distances [N, k], rising, inf where y has fewer rows, and their indices in y, int64 [N, k].
    """
    values, indices = [], []
    for rows, cols, distances in squared_distances(x, y):
        if own is not None:
            i = own[cols] - rows.start
            inside = (i >= 0) & (i < len(distances))
            distances[i[inside], inside.nonzero()[:, 0]] = torch.inf
        if cols.start == 0:
            best = distances.new_full((len(distances), k), torch.inf)
            index = torch.zeros(len(distances), k, dtype=torch.int64)
        close = distances.topk(min(k, distances.shape[1]), largest=False, sorted=False)
        best, order = torch.cat([best, close.values], 1).topk(k, largest=False)
        index = torch.cat([index, close.indices + cols.start], 1).gather(1, order)
        if cols.stop == len(y):
            values.append(best)
            indices.append(index)
    return torch.cat(values), torch.cat(indices)


def ball_radii(name: str, rows: Tensor, k: int) -> Tensor:
    """Return squared distances to the k-th nearest other row, [M].

    Args:
        name: of the metric, for messages.
        rows: [M, D].
        k: the neighbour.

    Raises:
        UserError: if there are no more than k rows.
    """
    if len(rows) <= k:
        raise UserError(f"{name}: {len(rows)} reference; it needs more than nearest = {k}")
    return nearest(rows, rows, k, own=torch.arange(len(rows)))[0][:, -1]


def ball_counts(x: Tensor, centres: Tensor, radii: Tensor, strict: bool) -> Tensor:
    """Return the number of balls that each row lies in, int64 [N].

    Args:
        x: rows [N, D].
        centres: of the balls, [M, D].
        radii: squared, [M].
        strict: whether the surface is outside.
    """
    counts = torch.zeros(len(x), dtype=torch.int64)
    for rows, cols, distances in squared_distances(x, centres):
        counts[rows] += (torch.lt if strict else torch.le)(distances, radii[cols]).sum(1)
    return counts

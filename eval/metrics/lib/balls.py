"""Metrics that count rows inside balls: all that are asked for share the distances of the two sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.eval.estimate import Estimate
from gen.eval.metrics import Column, check_rows
from gen.eval.metrics.lib.neighbours import OwnNeighbours, squared_distances
from gen.eval.metrics.lib.rows import subset

__all__ = ["BallCounts", "BallMetric", "Tally", "check_centres", "share_distances"]


class Tally(Protocol):
    """A count over all pairs of a sample and a real image."""

    def add(self, rows: slice, cols: slice, distances: Tensor) -> None:
        """Count a block of pairs.

        Args:
            rows: samples.
            cols: real images.
            distances: theirs, squared, [rows, columns]; to be left as they are.
        """
        ...

    def estimate(self) -> Estimate:
        """Return the metric, after all blocks."""
        ...


class BallMetric(Protocol):
    """A metric that a Tally computes."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """Declarations of its numbers."""
        ...

    @property
    def reduced_n(self) -> int | None:
        """Images of each kind that it is computed of, at most; None for all."""
        ...

    def neighbours(self, n: int, m: int) -> tuple[int, int]:
        """Return the neighbours that a sample among n samples needs, and a real image among m, 0 for none.

        Args:
            n, m: numbers of samples and of real images.

        Raises:
            UserError: for sets that are too small.
        """
        ...

    def tally(self, samples: OwnNeighbours, reference: OwnNeighbours) -> Tally:
        """Return a tally of two sets.

        Args:
            samples, reference: sets, with the neighbours within each.
        """
        ...


def share_distances(metrics: Sequence[BallMetric], samples: Tensor, reference: Tensor) -> list[Estimate]:
    """Compute metrics from one pass over the distances between two sets, and half a pass within each that needs it.

    Args:
        metrics: whose `reduced_n` may differ: then there is a pass for each.
        samples: rows [N, D].
        reference: rows [M, D].

    Returns:
        An estimate of each metric.

    Raises:
        UserError: for sets that one of them cannot compare.
    """
    check_rows(metrics[0].columns[0].key, samples, reference, least=1)
    found: dict[int, Estimate] = {}
    for limit in dict.fromkeys(metric.reduced_n for metric in metrics):
        x, y = samples, reference
        if limit is not None:
            size = min(limit, len(x), len(y))  # equal numbers of both, as published
            x, y = (rows[subset(len(rows), size, seed)] for seed, rows in enumerate((x, y)))
        own = [(i, metric) for i, metric in enumerate(metrics) if metric.reduced_n == limit]
        wanted = [metric.neighbours(len(x), len(y)) for _, metric in own]
        sets = [OwnNeighbours(rows, max(pair[k] for pair in wanted)) for k, rows in enumerate((x, y))]
        tallies = {i: metric.tally(sets[0], sets[1]) for i, metric in own}
        for rows, cols, distances in squared_distances(x, y):
            for tally in tallies.values():
                tally.add(rows, cols, distances)
        found |= {i: tally.estimate() for i, tally in tallies.items()}
    return [found[i] for i in range(len(metrics))]


def check_centres(name: str, m: int, k: int) -> None:
    """Check that there are enough real images for balls.

    Args:
        name: of the metric, for messages.
        m: real images.
        k: the neighbour that sets a ball's radius.

    Raises:
        UserError: if there are no more than k.
    """
    if m <= k:
        raise UserError(f"{name}: {m} reference; it needs more than nearest = {k}")


class BallCounts:
    """The number of balls about real images that each sample lies in.

    Args:
        n: samples.
        radii: of the balls, squared, [M].
        strict: whether the surface is outside.
    """

    def __init__(self, n: int, radii: Tensor, strict: bool) -> None:
        self.counts = torch.zeros(n, dtype=torch.int64)
        self._radii, self._inside = radii, torch.lt if strict else torch.le

    def add(self, rows: slice, cols: slice, distances: Tensor) -> None:
        """Count a block of pairs, see Tally."""
        self.counts[rows] += self._inside(distances, self._radii[cols]).sum(1)

"""Coverage: how much of the real data has a sample near it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.balls import check_centres, share_distances
from gen.eval.metrics.lib.neighbours import OwnNeighbours

__all__ = ["Coverage"]


@dataclass(frozen=True)
class Coverage:
    """The share of real images with a sample within the distance to their `nearest`-th real neighbour.

    Naeem et al. 2020, eq. 9, with the strict inequality. Balls are about real data, so odd samples raise nothing; a
    mode that is missing is missing here. Even real data reach 1 - C(M - nearest, N) / C(M, N) or so, not 1. The
    standard error is the jackknife's over the samples.

    Attributes:
        nearest: the neighbour that sets a ball's radius; 5 as published.
        reduced_n: samples and real images that are drawn of each set at random, at most; None for all.
    """

    columns: ClassVar = (
        Column(
            "coverage",
            "Coverage",
            higher_is_better=True,
            perfect=1.0,
            note="share of real images with a sample inside their own nearest-neighbour ball",
            priority=70,
        ),
    )
    needs: ClassVar = "features"
    together: ClassVar = staticmethod(share_distances)

    nearest: int = 5
    reduced_n: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, nearest="[1, inf)", reduced_n="[1, inf)")

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from rows [N, D] and reference rows [M, D], M > nearest."""
        return share_distances([self], samples, reference)[0]

    def neighbours(self, n: int, m: int) -> tuple[int, int]:
        """Return the neighbours that it needs within each set, see gen.eval.metrics.lib.balls."""
        check_centres("coverage", m, self.nearest)
        if n < 2:
            raise UserError(f"coverage: {n} samples; it needs at least 2")
        return 0, self.nearest

    def tally(self, samples: OwnNeighbours, reference: OwnNeighbours) -> CoveredBalls:
        """Return a tally of two sets."""
        return CoveredBalls(len(samples), reference.radii(self.nearest))


class CoveredBalls:
    """Balls about real images that hold a sample.

    Args:
        n: samples.
        radii: of the balls, squared, [M]; their surface is outside.
    """

    def __init__(self, n: int, radii: Tensor) -> None:
        self._n, self._radii = n, radii
        self.counts, self._last = torch.zeros(2, len(radii), dtype=torch.int64)  # samples inside, and one of them

    def add(self, rows: slice, cols: slice, distances: Tensor) -> None:
        """Count a block of pairs, see Tally."""
        inside = distances < self._radii[cols]
        counts = inside.sum(0)
        self.counts[cols] += counts
        self._last[cols] = torch.where(counts > 0, inside.byte().argmax(0) + rows.start, self._last[cols])

    def estimate(self) -> Estimate:
        """Return the share that hold any, and its jackknife."""
        n, m = self._n, len(self.counts)
        value = (self.counts > 0).double().mean()
        lost = torch.bincount(self._last[self.counts == 1], minlength=n)  # balls that lose their only sample with it
        without = value - lost.double() / m  # [N], without sample i
        se = ((n - 1) / n * ((without - without.mean()) ** 2).sum()).sqrt()
        return Estimate(float(value), float(se), n)

"""Density: how many real neighbourhoods samples lie in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.balls import BallCounts, check_centres, share_distances
from gen.eval.metrics.lib.neighbours import OwnNeighbours

__all__ = ["Density"]


@dataclass(frozen=True)
class Density:
    """The mean over samples of the number of real images whose ball they lie in, divided by `nearest`.

    Naeem et al. 2020, eq. 7, with the strict inequality; a ball reaches to its centre's `nearest`-th real neighbour.
    About 1 for samples of the real distribution, and more for samples that crowd where real data are dense. The
    standard error is that of a mean over samples.

    Attributes:
        nearest: the neighbour that sets a ball's radius; 5 as published.
        reduced_n: samples and real images that are drawn of each set at random, at most; None for all.
    """

    columns: ClassVar = (
        Column(
            "density",
            "Density",
            higher_is_better=True,
            perfect=1.0,
            note="real nearest-neighbour balls that a sample lies in, divided by the neighbours that set their radius",
            priority=75,
        ),
    )
    needs: ClassVar = "features"
    together: ClassVar = staticmethod(share_distances)
    default: ClassVar = False

    nearest: int = 5
    reduced_n: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, nearest="[1, inf)", reduced_n="[1, inf)")

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from rows [N, D], N > 1, and reference rows [M, D], M > nearest."""
        return share_distances([self], samples, reference)[0]

    def neighbours(self, n: int, m: int) -> tuple[int, int]:
        """Return the neighbours that it needs within each set, see gen.eval.metrics.lib.balls."""
        check_centres("density", m, self.nearest)
        if n < 2:
            raise UserError(f"density: {n} samples; it needs at least 2")
        return 0, self.nearest

    def tally(self, samples: OwnNeighbours, reference: OwnNeighbours) -> MeanCount:
        """Return a tally of two sets."""
        return MeanCount(len(samples), reference.radii(self.nearest), self.nearest)


class MeanCount(BallCounts):
    """Balls that samples lie in, of the k that a real image's own neighbours lie in.

    Args:
        n: samples.
        radii: of the balls, squared, [M].
        k: the neighbour that set them.
    """

    def __init__(self, n: int, radii: Tensor, k: int) -> None:
        super().__init__(n, radii, strict=True)
        self._k = k

    def estimate(self) -> Estimate:
        """Return their mean number."""
        counts = self.counts.double() / self._k
        return Estimate(float(counts.mean()), float(counts.std()) / len(counts) ** 0.5, len(counts))

"""Precision: how many samples lie where real data are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.balls import BallCounts, check_centres, share_distances
from gen.eval.metrics.lib.neighbours import OwnNeighbours
from gen.eval.metrics.lib.shares import share

__all__ = ["Precision"]


@dataclass(frozen=True)
class Precision:
    """The share of samples within the distance of some real image to its own `nearest`-th neighbour among real images.

    Kynkaanniemi et al. 2019, eq. 1, as torch-fidelity computes it, and ADM's evaluation but for its float16, which
    differs in the third digit. It depends on the number of real images: compare equal numbers only.
    The standard error is that of a share, the real images being what they are.

    Attributes:
        nearest: the neighbour that sets a ball's radius; 3 as published.
        strict: whether a ball's surface is outside, as in the package prdc.
        reduced_n: samples and real images that are drawn of each set at random, at most; None for all.
    """

    columns: ClassVar = (
        Column(
            "precision",
            "Precision",
            higher_is_better=True,
            perfect=1.0,
            note="share of samples inside the nearest-neighbour ball of some real image",
            priority=85,
        ),
    )
    needs: ClassVar = "features"
    together: ClassVar = staticmethod(share_distances)

    nearest: int = 3
    strict: bool = False
    reduced_n: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, nearest="[1, inf)", reduced_n="[1, inf)")

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from rows [N, D] and reference rows [M, D], M > nearest."""
        return share_distances([self], samples, reference)[0]

    def neighbours(self, n: int, m: int) -> tuple[int, int]:
        """Return the neighbours that it needs within each set, see gen.eval.metrics.lib.balls."""
        check_centres("precision", m, self.nearest)
        return 0, self.nearest

    def tally(self, samples: OwnNeighbours, reference: OwnNeighbours) -> CoveredSamples:
        """Return a tally of two sets."""
        return CoveredSamples(len(samples), reference.radii(self.nearest), self.strict)


class CoveredSamples(BallCounts):
    """Samples inside a ball."""

    def estimate(self) -> Estimate:
        """Return their share."""
        return share(int((self.counts > 0).sum()), len(self.counts))

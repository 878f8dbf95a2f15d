"""Density: how many real neighbourhoods samples lie in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate, check_rows
from gen.eval.metrics.lib.neighbours import ball_counts, ball_radii

__all__ = ["Density"]


@dataclass(frozen=True)
class Density:
    """The mean over samples of the number of real images whose ball they lie in, divided by `nearest`.

    Naeem et al. 2020, eq. 7, with the strict inequality; a ball reaches to its centre's `nearest`-th real neighbour.
    About 1 for samples of the real distribution, and more for samples that crowd where real data are dense. The
    standard error is that of a mean over samples.

    Attributes:
        nearest: the neighbour that sets a ball's radius; 5 as published.
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
    default: ClassVar = False

    nearest: int = 5

    def __post_init__(self) -> None:
        check_fields(self, nearest="[1, inf)")

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from rows [N, D], N > 1, and reference rows [M, D], M > nearest."""
        check_rows("density", samples, reference)
        radii = ball_radii("density", reference, self.nearest)
        counts = ball_counts(samples, reference, radii, strict=True).double() / self.nearest
        return Estimate(float(counts.mean()), float(counts.std()) / len(samples) ** 0.5, len(samples))

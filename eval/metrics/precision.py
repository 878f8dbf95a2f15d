"""Precision: how many samples lie where real data are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate, check_rows
from gen.eval.metrics.lib.neighbours import ball_counts, ball_radii
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

    nearest: int = 3
    strict: bool = False

    def __post_init__(self) -> None:
        check_fields(self, nearest="[1, inf)")

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from rows [N, D] and reference rows [M, D], M > nearest."""
        check_rows("precision", samples, reference, least=1)
        radii = ball_radii("precision", reference, self.nearest)
        return share(int((ball_counts(samples, reference, radii, self.strict) > 0).sum()), len(samples))

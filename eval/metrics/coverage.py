"""Coverage: how much of the real data has a sample near it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate, check_rows
from gen.eval.metrics.lib.neighbours import ball_radii, nearest

__all__ = ["Coverage"]


@dataclass(frozen=True)
class Coverage:
    """The share of real images with a sample within the distance to their `nearest`-th real neighbour.

    Naeem et al. 2020, eq. 9, with the strict inequality. Balls are about real data, so odd samples raise nothing; a
    mode that is missing is missing here. Even real data reach 1 - C(M - nearest, N) / C(M, N) or so, not 1. The
    standard error is the jackknife's over the samples.

    Attributes:
        nearest: the neighbour that sets a ball's radius; 5 as published.
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

    nearest: int = 5

    def __post_init__(self) -> None:
        check_fields(self, nearest="[1, inf)")

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from rows [N, D] and reference rows [M, D], M > nearest."""
        check_rows("coverage", samples, reference)
        radii, n = ball_radii("coverage", reference, self.nearest), len(samples)
        close, index = nearest(reference, samples, 2)
        inside = close < radii[:, None]  # the first and the second sample, [M, 2]
        value = inside[:, 0].double().mean()
        alone = inside[:, 0] & ~inside[:, 1]  # balls that lose their only sample with it
        without = value - torch.bincount(index[alone, 0], minlength=n) / len(reference)  # [N], without sample i
        se = ((n - 1) / n * ((without - without.mean()) ** 2).sum()).sqrt()
        return Estimate(float(value), float(se), n)

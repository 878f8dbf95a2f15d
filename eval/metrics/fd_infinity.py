"""The Frechet distance at an infinite number of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.moments import Moments, distance, reference_moments

__all__ = ["FDInfinity"]


@dataclass(frozen=True)
class FDInfinity:
    """The intercept of a line through the Frechet distance of subsets against 1 / their size.

    Chong & Forsyth 2020, as in dgm-eval: sizes evenly spaced from 5000 (a tenth, if there are fewer samples than
    50,000) to all, drawn without replacement; the reference is used whole. Its draws are not seeded, so equal to the
    spread of draws only. No standard error: the subsets share their samples.

    Attributes:
        points: subsets on the line; 15 as published.
        smallest: samples of the smallest subset, at most; 5000 as published.
        seed: of the draws.
    """

    columns: ClassVar = (
        Column(
            "fd_infinity",
            "FID∞",
            note="Fréchet distance extrapolated to infinitely many samples along 1 / N",
            priority=98,
        ),
    )
    needs: ClassVar = "features"
    moments: ClassVar = True
    default: ClassVar = False

    points: int = 15
    smallest: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, points="[2, inf)", smallest="[2, inf)", seed="[0, inf)")

    def __call__(self, samples: Tensor, reference: Tensor | Moments) -> Estimate:
        """Compute it from rows [N, D], N >= 20, and reference rows [M, D], or their moments."""
        real, n = reference_moments("fd_infinity", samples, reference), len(samples)
        if n < 20:
            raise UserError(f"fd_infinity: {n} samples; it needs at least 20")
        random = np.random.RandomState(self.seed)
        sizes = np.linspace(min(self.smallest, max(n // 10, 2)), n, self.points).astype(int)
        values = []
        for size in sizes.tolist():
            chosen = torch.from_numpy(np.sort(random.choice(n, size, replace=False)))
            values.append(distance(Moments.of_rows(samples, chosen), real))
        _, intercept = np.polyfit(1 / sizes, values, 1)
        return Estimate(float(intercept), None, n)

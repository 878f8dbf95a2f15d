"""Distance to the nearest training image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate, check_rows

__all__ = ["Nearest"]


@dataclass(frozen=True)
class Nearest:
    """The median over samples of the L2 distance to the nearest row of the training set.

    Read it beside the same number for held-out real images: far below it, the model copies. The differences are taken
    one by one (no expanded square), so a copy is at exactly 0. The standard error is half the width of the median's
    68 % interval from order statistics.

    Attributes:
        block: samples compared at once.
    """

    columns: ClassVar = (
        Column(
            "nearest",
            "Nearest",
            higher_is_better=None,
            note="median distance to the nearest training image in features; copies are far below real images",
            priority=50,
        ),
    )
    needs: ClassVar = "train_features"

    block: int = 256

    def __post_init__(self) -> None:
        check_fields(self, block="[1, inf)")

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from features [N, D] and those of the training images [M, D]."""
        check_rows("nearest", samples, reference, least=1)
        x, y = samples.double(), reference.double()
        n = len(x)
        exact = "donot_use_mm_for_euclid_dist"
        distances = torch.cat(
            [torch.cdist(part, y, compute_mode=exact).min(1).values for part in torch.split(x, self.block)]
        )
        ordered = distances.sort().values
        half = math.sqrt(n) / 2
        low, high = max(math.floor((n - 1) / 2 - half), 0), min(math.ceil((n - 1) / 2 + half), n - 1)
        return Estimate(float(distances.quantile(0.5)), float(ordered[high] - ordered[low]) / 2, n)

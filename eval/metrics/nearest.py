"""Distance to the nearest training image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.eval.metrics import Column, Estimate, check_rows
from gen.eval.metrics.lib.neighbours import nearest

__all__ = ["Nearest"]

ROWS = 256  # at a time
CANDIDATES = 4  # neighbours by the expanded square, of which the nearest by differences is taken


@dataclass(frozen=True)
class Nearest:
    """The median over samples of the L2 distance of features to the nearest training image.

    Read it beside the same number for held-out real images: far below it, the model copies. Distances are taken from
    differences, so a copy is at exactly 0. The standard error is half the width of the median's 68 % interval from
    order statistics.
    """

    columns: ClassVar = (
        Column(
            "nearest",
            "Nearest",
            higher_is_better=None,
            note="median distance of features to the nearest training image; if it copies, far below real images",
            priority=50,
        ),
    )
    needs: ClassVar = "train_features"

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from features [N, D] and those of the training images [M, D]."""
        ordered, n = self.pairs(samples, reference)[0].sort().values, len(samples)
        half = math.sqrt(n) / 2
        low, high = max(math.floor((n - 1) / 2 - half), 0), min(math.ceil((n - 1) / 2 + half), n - 1)
        median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
        return Estimate(float(median), float(ordered[high] - ordered[low]) / 2, n)

    def pairs(self, samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Return each sample's distance to its nearest training image, float64 [N], and its index, int64 [N].

        Args:
            samples: features [N, D].
            reference: features of the training images [M, D].

        Raises:
            UserError: for sets that cannot be compared.
        """
        check_rows("nearest", samples, reference, least=1)
        index = nearest(samples, reference, min(CANDIDATES, len(reference)))[1]
        distances = torch.empty(index.shape, dtype=torch.float64)
        for rows in torch.arange(len(samples)).split(ROWS):
            differences = samples[rows].double()[:, None] - reference[index[rows]].double()
            distances[rows] = differences.norm(dim=2)
        closest, which = distances.min(1)
        return closest, index.gather(1, which[:, None])[:, 0]

"""AuthPct: how many samples are no near-copies of training images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.config.errors import UserError
from gen.eval.metrics import Column, Estimate, check_rows
from gen.eval.metrics.lib.neighbours import OwnNeighbours, nearest
from gen.eval.metrics.lib.shares import share

__all__ = ["AuthPct"]


@dataclass(frozen=True)
class AuthPct:
    """The share of samples that are farther from their nearest training image than that is from its own nearest one.

    Alaa et al. 2022, as in dgm-eval. Read it beside the same number for held-out real images: below it, samples lie
    too close to training images; far above it, they are far from all real data.
    """

    columns: ClassVar = (
        Column(
            "authpct",
            "AuthPct",
            higher_is_better=None,
            percent=True,
            note="share of samples farther from the nearest training image than that is from its nearest neighbour",
            priority=38,
        ),
    )
    needs: ClassVar = "train_features"
    default: ClassVar = False

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from features [N, D] and those of the training images [M, D], M > 1."""
        check_rows("authpct", samples, reference, least=1)
        if len(reference) < 2:
            raise UserError(f"authpct: {len(reference)} reference; it needs at least 2")
        apart = OwnNeighbours(reference).radii(1)
        distances, index = nearest(samples, reference, 1)
        return share(int((apart[index[:, 0]] < distances[:, 0]).sum()), len(samples))

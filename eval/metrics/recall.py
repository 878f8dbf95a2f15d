"""Recall: how much of the real data lies where samples are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate, check_rows

__all__ = ["Recall"]


@dataclass(frozen=True)
class Recall:
    """The share of real images within the distance of some sample to its own `nearest`-th neighbour among the samples.

    Kynkaanniemi et al. 2019, eq. 2. The balls are about samples, so a few odd ones raise it, and it depends on their
    number. The standard error is the jackknife's over the samples in `groups`, which for distances to neighbours is
    wide: up to twice the true one.

    Attributes:
        nearest: the neighbour that sets a ball's radius; 3 as published.
        groups: groups of samples that the jackknife leaves out in turn.
    """

    columns: ClassVar = (
        Column(
            "recall",
            "Recall",
            higher_is_better=True,
            perfect=1.0,
            note="share of real images inside the nearest-neighbour ball of some sample",
            priority=80,
        ),
    )
    needs: ClassVar = "features"

    nearest: int = 3
    groups: int = 20

    def __post_init__(self) -> None:
        check_fields(self, nearest="[1, inf)", groups="[2, inf)")

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from rows [N, D], N >= 2 nearest + 2, and reference rows [M, D]."""
        check_rows("recall", samples, reference, least=1)
        x, y = samples.double(), reference.double()
        n, groups = len(x), min(self.groups, len(x))
        if n - -(-n // groups) <= self.nearest:
            raise UserError(f"recall: {n} samples; it needs at least {2 * self.nearest + 2}")
        among, across = torch.cdist(x, x), torch.cdist(y, x)
        group = torch.arange(n) % groups
        without = torch.stack([self._share(among, across, group != k) for k in range(groups)])
        se = ((groups - 1) / groups * ((without - without.mean()) ** 2).sum()).sqrt()
        return Estimate(float(self._share(among, across, group >= 0)), float(se), n)

    def _share(self, among: Tensor, across: Tensor, keep: Tensor) -> Tensor:
        """Return the recall of some of the samples."""
        radius = among[keep][:, keep].kthvalue(self.nearest + 1, 1).values  # itself is the first
        return (across[:, keep] <= radius).any(1).double().mean()

"""Recall: how much of the real data lies where samples are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate, check_rows
from gen.eval.metrics.lib.neighbours import nearest, squared_distances

__all__ = ["Recall"]


@dataclass(frozen=True)
class Recall:
    """The share of real images within the distance of some sample to its own `nearest`-th neighbour among the samples.

    Kynkaanniemi et al. 2019, eq. 2, as torch-fidelity computes it, and ADM's evaluation but for its float16, which
    differs in the third digit. The balls are about samples, so a few odd ones raise it, and it depends
    on their number: compare equal numbers only. The standard error is the jackknife's over the samples in `groups`
    drawn at random, which for distances to neighbours is wide: up to twice the true one.

    Attributes:
        nearest: the neighbour that sets a ball's radius; 3 as published.
        strict: whether a ball's surface is outside, as in the package prdc.
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
    strict: bool = False
    groups: int = 20

    def __post_init__(self) -> None:
        check_fields(self, nearest="[1, inf)", groups="[2, inf)")

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from rows [N, D], N >= 2 nearest + 2, and reference rows [M, D]."""
        check_rows("recall", samples, reference, least=1)
        n, groups = len(samples), min(self.groups, len(samples))
        if n - -(-n // groups) <= self.nearest:
            raise UserError(f"recall: {n} samples; it needs at least {2 * self.nearest + 2}")
        group = torch.randperm(n, generator=torch.Generator().manual_seed(0)) % groups
        radii = self._radii(samples, group, groups)  # [N, groups + 1]
        inside = torch.lt if self.strict else torch.le
        hits = torch.zeros(len(reference), groups + 1, dtype=torch.int32)
        for rows, cols, distances in squared_distances(reference, samples, columns=1024):
            i, j = inside(distances, radii[cols].amax(1)).nonzero(as_tuple=True)  # few pairs are close
            within = inside(distances[i, j][:, None], radii[cols][j])
            within &= group[cols][j][:, None] != torch.arange(groups + 1)
            hits[rows].index_add_(0, i, within.int())
        *without, value = (hits > 0).double().mean(0).tolist()
        left = torch.tensor(without, dtype=torch.float64)
        se = ((groups - 1) / groups * ((left - left.mean()) ** 2).sum()).sqrt()
        return Estimate(value, float(se), n)

    def _radii(self, x: Tensor, group: Tensor, groups: int) -> Tensor:
        """Return squared radii without the samples of each group, and last those with all of them, [N, groups + 1]."""
        members = [(group == g).nonzero()[:, 0] for g in range(groups)]
        close = torch.stack([nearest(x, x[own], self.nearest, own)[0] for own in members], 1)  # [N, groups, nearest]
        others = torch.arange(groups)
        kept = [close[:, others != g].flatten(1) for g in range(groups)]
        return torch.stack([distances.kthvalue(self.nearest, 1).values for distances in (*kept, close.flatten(1))], 1)

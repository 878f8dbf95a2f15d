"""Recall: how much of the real data lies where samples are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.balls import share_distances
from gen.eval.metrics.lib.neighbours import OwnNeighbours

__all__ = ["Recall"]

PAIRS = 2**17  # of a sample and a real image at once
SPARE = 48  # bits: neighbours beyond the nearest so that those of one group, drawn at random, are not all of them


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
        reduced_n: samples and real images that are drawn of each set at random, at most; None for all.
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
    together: ClassVar = staticmethod(share_distances)

    nearest: int = 3
    strict: bool = False
    groups: int = 20
    reduced_n: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, nearest="[1, inf)", groups="[2, inf)", reduced_n="[1, inf)")

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from rows [N, D], N >= 2 nearest + 2, and reference rows [M, D]."""
        return share_distances([self], samples, reference)[0]

    def neighbours(self, n: int, m: int) -> tuple[int, int]:
        """Return the neighbours that it needs within each set, see gen.eval.metrics.lib.balls."""
        groups = min(self.groups, n)
        size = -(-n // groups)
        if n - size <= self.nearest:
            raise UserError(f"recall: {n} samples; it needs at least {2 * self.nearest + 2}")
        return self.nearest + min(size - 1, math.ceil(SPARE / math.log2(groups))), 0

    def tally(self, samples: OwnNeighbours, reference: OwnNeighbours) -> CoveredReal:
        """Return a tally of two sets."""
        n, groups = len(samples), min(self.groups, len(samples))
        group = torch.randperm(n, generator=torch.Generator().manual_seed(0)) % groups
        radii = radii_without(samples, self.neighbours(n, len(reference))[0], self.nearest, group, groups)
        return CoveredReal(len(reference), radii, group, self.strict)


def radii_without(samples: OwnNeighbours, most: int, k: int, group: Tensor, groups: int) -> Tensor:
    """Return squared radii without the samples of each group, and last those with all of them, [N, groups + 1].

    Args:
        samples: the set.
        most: neighbours to begin with; twice as many where those of one group are among them so often that k others
            are not.
        k: the neighbour that sets a radius.
        group: of each sample, int64 [N], below `groups`.
        groups: number of them.
    """
    values, indices = samples.nearest(most)
    of_group = group[indices]
    left = [values.masked_fill(of_group == g, torch.inf).kthvalue(k, 1).values for g in range(groups)]
    radii = torch.stack([*left, values[:, k - 1]], 1)
    enough = most >= len(samples) or bool(radii.isfinite().all())
    return radii if enough else radii_without(samples, 2 * most, k, group, groups)


class CoveredReal:
    """Real images inside the ball of a sample, with all samples and without each group of them.

    Args:
        m: real images.
        radii: of the balls, squared, without each group, and last with all, [N, groups + 1].
        group: of each sample, int64 [N].
        strict: whether a ball's surface is outside.
    """

    def __init__(self, m: int, radii: Tensor, group: Tensor, strict: bool) -> None:
        self._radii, self._group, self._inside = radii, group, torch.lt if strict else torch.le
        self._largest = radii.amax(1)
        self.hits = torch.zeros(m, radii.shape[1], dtype=torch.int32)

    def add(self, rows: slice, cols: slice, distances: Tensor) -> None:
        """Count a block of pairs, see Tally."""
        pairs = self._inside(distances, self._largest[rows, None]).nonzero()  # few are close
        columns = torch.arange(self.hits.shape[1])
        for i, j in (part.T for part in pairs.split(PAIRS)):
            within = self._inside(distances[i, j][:, None], self._radii[rows][i])
            within &= self._group[rows][i][:, None] != columns
            self.hits[cols].index_add_(0, j, within.int())

    def estimate(self) -> Estimate:
        """Return their share, and its jackknife over groups."""
        groups = self.hits.shape[1] - 1
        *without, value = (self.hits > 0).double().mean(0).tolist()
        left = torch.tensor(without, dtype=torch.float64)
        se = ((groups - 1) / groups * ((left - left.mean()) ** 2).sum()).sqrt()
        return Estimate(value, float(se), len(self._group))

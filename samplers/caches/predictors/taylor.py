"""TaylorSeer's prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gen.samplers.caches.predictors.lib.differences import Extrapolation, difference_table

__all__ = ["Taylor"]


@dataclass(frozen=True)
class Taylor(Extrapolation):
    """sum_i F^i (x - now)^i / i! over a table of differences F^i (TaylorSeer, Liu et al. 2025, arXiv 2503.06923).

    Exactly as published, and therefore exact on affine features only, at any order: the higher differences lag. The lag
    also damps noise: at spacing 4 the weights' absolute sum is 4.4 at order 4, where `newton` has 19.

    Attributes:
        since: coordinate before which snapshots grow no differences; the preset gives what the published warm-up
            implies.
    """

    since: float | None = None

    @property
    def degree(self) -> int:
        return min(self.order, 1)

    def weights(self, nodes: Sequence[float], x: float) -> list[float]:
        out = [0.0] * len(nodes)
        for i, row in enumerate(difference_table(nodes, self.order, self.since)):
            factor = (x - nodes[0]) ** i / math.factorial(i)
            out = [o + factor * w for o, w in zip(out, row, strict=True)]
        return out

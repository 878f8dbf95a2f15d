"""TaylorSeer's prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gen.config.errors import UserError
from gen.samplers.caches.predictors.lib.differences import ladder

__all__ = ["Taylor"]


@dataclass(frozen=True)
class Taylor:
    """sum_i F^i (x - now)^i / i! over a ladder of differences F^i (TaylorSeer, Liu et al. 2025, arXiv 2503.06923).

    Exactly as published, and therefore exact on affine features only, at any order: the ladder's higher rungs lag. The
    lag also damps noise: at spacing 4 the weights' absolute sum is 4.4 at order 4, where `newton` has 19.
    since: coordinate before which snapshots grow no differences; the preset gives what the published warm-up implies.
    """

    order: int = 1
    since: float | None = None

    def __post_init__(self) -> None:
        if self.order < 0:
            raise UserError(f"Taylor: order = {self.order}; it must be at least 0")

    @property
    def size(self) -> int:
        return self.order + 1

    @property
    def degree(self) -> int:
        return min(self.order, 1)

    def weights(self, nodes: Sequence[float], x: float) -> list[float]:
        out = [0.0] * len(nodes)
        for i, rung in enumerate(ladder(nodes, self.order, self.since)):
            factor = (x - nodes[0]) ** i / math.factorial(i)
            out = [o + factor * r for o, r in zip(out, rung, strict=True)]
        return out

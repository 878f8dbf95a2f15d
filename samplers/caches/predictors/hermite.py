"""HiCache's prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gen.config.fields import check_fields
from gen.samplers.caches.predictors.lib.differences import Extrapolation, difference_table

__all__ = ["Hermite"]


@dataclass(frozen=True)
class Hermite(Extrapolation):
    """sum_i F^i scale^i H_i(scale (x - now)) / i! with the physicists' Hermite polynomials (HiCache, Feng et al. 2025).

    The differences F^i are TaylorSeer's.

    Attributes:
        order: of the highest difference, at least 0.
        scale: H_1(y) = 2 y multiplies the slope by 2 scale^2: the published 0.5 halves it, which damps; only sqrt(1/2)
            is exact on affine features.
    """

    order: int = 2
    scale: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, scale="(0, inf)")

    @property
    def degree(self) -> int:
        return 1 if self.order and math.isclose(2 * self.scale**2, 1) else 0

    def weights(self, nodes: Sequence[float], x: float) -> list[float]:
        y = self.scale * (x - nodes[0])
        before, now = 0.0, 1.0  # H_(i-1)(y), H_i(y)
        out = [0.0] * len(nodes)
        for i, row in enumerate(difference_table(nodes, self.order)):
            factor = self.scale**i * now / math.factorial(i)
            out = [o + factor * w for o, w in zip(out, row, strict=True)]
            before, now = now, 2 * y * now - 2 * i * before
        return out

"""HiCache's prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gen.config.errors import UserError
from gen.samplers.caches.predictors.lib.differences import ladder

__all__ = ["Hermite"]


@dataclass(frozen=True)
class Hermite:
    """sum_i F^i scale^i H_i(scale (x - now)) / i! with the physicists' Hermite polynomials (HiCache, Feng et al. 2025).

    The ladder is TaylorSeer's. H_1(y) = 2 y multiplies the slope by 2 scale^2: the published 0.5 halves it, which
    damps; only scale = sqrt(1/2) is exact on affine features.
    """

    order: int = 2
    scale: float = 0.5

    def __post_init__(self) -> None:
        if self.order < 0 or not self.scale > 0:
            raise UserError(f"Hermite: order = {self.order}, scale = {self.scale}; order >= 0 and scale > 0 are needed")

    @property
    def size(self) -> int:
        return self.order + 1

    @property
    def degree(self) -> int:
        return 1 if self.order and math.isclose(2 * self.scale**2, 1) else 0

    def weights(self, nodes: Sequence[float], x: float) -> list[float]:
        y = self.scale * (x - nodes[0])
        before, now = 0.0, 1.0  # H_(i-1)(y), H_i(y)
        out = [0.0] * len(nodes)
        for i, rung in enumerate(ladder(nodes, self.order)):
            factor = self.scale**i * now / math.factorial(i)
            out = [o + factor * r for o, r in zip(out, rung, strict=True)]
            before, now = now, 2 * y * now - 2 * i * before
        return out

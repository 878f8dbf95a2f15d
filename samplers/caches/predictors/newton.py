"""The interpolating polynomial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gen.samplers.caches.predictors.lib.differences import Extrapolation

__all__ = ["Newton"]


@dataclass(frozen=True)
class Newton(Extrapolation):
    """The polynomial through the last order + 1 snapshots, carried on to x: exact to its degree on any spacing.

    Newton's form and Lagrange's are one polynomial; the weights are Lagrange's. What `taylor` should be in exact
    arithmetic, at the price of amplifying noise.
    """

    def weights(self, nodes: Sequence[float], x: float) -> list[float]:
        return [math.prod((x - b) / (a - b) for b in nodes if b != a) for a in nodes]

"""The interpolating polynomial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gen.config.errors import UserError

__all__ = ["Newton"]


@dataclass(frozen=True)
class Newton:
    """The polynomial through the last order + 1 snapshots, carried on to x: exact to its degree on any spacing.

    Newton's form and Lagrange's are one polynomial; the weights are Lagrange's. What `taylor` should be in exact
    arithmetic, at the price of amplifying noise.
    """

    order: int = 1

    def __post_init__(self) -> None:
        if self.order < 0:
            raise UserError(f"Newton: order = {self.order}; it must be at least 0")

    @property
    def size(self) -> int:
        return self.order + 1

    @property
    def degree(self) -> int:
        return self.order

    def weights(self, nodes: Sequence[float], x: float) -> list[float]:
        return [math.prod((x - b) / (a - b) for b in nodes if b != a) for a in nodes]

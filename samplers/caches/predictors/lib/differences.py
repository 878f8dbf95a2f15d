"""Extrapolation to an order, and the table of differences that TaylorSeer and HiCache use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gen.config.fields import check_fields
from gen.samplers.caches.lib.parts import FeaturePredictor

__all__ = ["Extrapolation", "difference_table"]


@dataclass(frozen=True)
class Extrapolation(FeaturePredictor):
    """Defaults of a predictor through the last order + 1 snapshots.

    Attributes:
        order: at least 0.
    """

    order: int = 1

    def __post_init__(self) -> None:
        check_fields(self, order="[0, inf)")

    @property
    def size(self) -> int:
        return self.order + 1

    @property
    def degree(self) -> int:
        return self.order


def difference_table(nodes: Sequence[float], order: int, since: float | None = None) -> list[list[float]]:
    """Return F^0 .. F^order at the newest node, as far as the nodes reach, as weights on the snapshots.

    F^0 = f and F^i(now) = (F^(i-1)(now) - F^(i-1)(before)) / (now - before). These are differences over the last
    spacing alone, and no divided differences: beyond F^1 they lag behind the derivative that they stand for.

    Args:
        nodes: coordinates of the snapshots, newest first.
        order: the highest difference.
        since: nodes before this coordinate have F^0 only, as TaylorSeer's have during its warm-up; None for no such.
    """
    n = len(nodes)
    level = [[float(i == j) for i in range(n)] for j in range(n)]  # F^0 at each node
    rows = [level[0]]
    early = [since is not None and node < since for node in nodes]
    depth = n  # nodes, from the newest, that have the present difference
    for _ in range(order):
        depth = next((j for j in range(depth - 1) if early[j]), depth - 1)
        if depth < 1:
            break
        level = [
            [(a - b) / (nodes[j] - nodes[j + 1]) for a, b in zip(level[j], level[j + 1], strict=True)]
            for j in range(depth)
        ]
        rows.append(level[0])
    return rows

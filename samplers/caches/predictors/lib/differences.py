"""The ladder of differences that TaylorSeer and HiCache stand on."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ladder"]


def ladder(nodes: Sequence[float], order: int, since: float | None = None) -> list[list[float]]:
    """F^0 .. F^order at the newest node as weights on the snapshots, newest first; as far as the nodes reach.

    F^0 = f and F^i(now) = (F^(i-1)(now) - F^(i-1)(before)) / (now - before). These are differences over the last
    spacing alone, and no divided differences: beyond F^1 they lag behind the derivative that they stand for.
    since: nodes before this coordinate have F^0 only, as TaylorSeer's have during its warm-up.
    """
    n = len(nodes)
    level = [[float(i == j) for i in range(n)] for j in range(n)]  # F^0 at each node
    rungs = [level[0]]
    early = [since is not None and node < since for node in nodes]
    depth = n  # nodes, from the newest, that have the present rung
    for _ in range(order):
        depth = next((j for j in range(depth - 1) if early[j]), depth - 1)
        if depth < 1:
            break
        level = [
            [(a - b) / (nodes[j] - nodes[j + 1]) for a, b in zip(level[j], level[j + 1], strict=True)]
            for j in range(depth)
        ]
        rungs.append(level[0])
    return rungs

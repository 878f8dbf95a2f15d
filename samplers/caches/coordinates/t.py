"""Time as a coordinate."""

from __future__ import annotations

from dataclasses import dataclass

from gen.diffusion.tap import Context

__all__ = ["T"]


@dataclass(frozen=True)
class T:
    """The time t of the evaluation: right on uneven grids, and for solvers that look between the grid's times."""

    def value(self, context: Context) -> float:
        return context.t

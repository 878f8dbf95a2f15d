"""The coordinate of the published caches."""

from __future__ import annotations

from dataclasses import dataclass

from gen.diffusion.tap import Context

__all__ = ["Step"]


@dataclass(frozen=True)
class Step:
    """The index of the step, as TaylorSeer and its kin count; uneven grids look even to it."""

    def value(self, context: Context) -> float:
        return float(context.step)

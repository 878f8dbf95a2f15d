"""The midpoint rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gen.samplers.solvers.lib.stages import MIDPOINT, RungeKutta, Tableau

__all__ = ["Midpoint"]


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """An Euler step to (t + s) / 2, then the whole step with the prediction found there.

    It never calls f at s, so the last step, to t = 0, is second order too. 2N evaluations.
    """

    order: ClassVar[int] = 2
    tableau: ClassVar[Tableau] = MIDPOINT

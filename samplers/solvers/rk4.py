"""The classical fourth-order rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gen.samplers.solvers.lib.stages import CLASSICAL, RungeKutta, Tableau

__all__ = ["RK4"]


@dataclass(frozen=True)
class RK4(RungeKutta):
    """Runge-Kutta's classical rule in t for dx/dt = alpha' x0 + sigma' eps.

    It integrates what x has beside alpha x0 + sigma eps of the step's first prediction: on flow and EDM the same rule,
    on every path exact where predictions do not change.

    Its last stage lies at the end of the step, so the last step, to t = 0, is the midpoint rule's. 4N - 2 evaluations.
    """

    order: ClassVar[int] = 4
    tableau: ClassVar[Tableau] = CLASSICAL

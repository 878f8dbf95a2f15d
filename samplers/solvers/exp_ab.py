"""Exponential Adams-Bashforth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.contracts import DenoiseFn, DrawNoise
from gen.diffusion.path import NoisePath
from gen.samplers.solvers.lib.exponential import (
    History,
    Multistep,
    Node,
    add_corrections,
    data_prediction,
    integrals,
    ratio_integrals,
)
from gen.samplers.solvers.lib.stages import CLASSICAL, runge_kutta_step

__all__ = ["ExpAB"]


class State(NamedTuple):
    """Steps done, and the values of x0 that they left, newest first."""

    done: int = 0
    history: History = ()


@dataclass(frozen=True)
class ExpAB(Multistep):
    """Exponential Adams-Bashforth of any order (Hochbruck & Ostermann 2010, section 2.5).

    x0 is extrapolated by a polynomial through its last values and integrated exactly: in log-SNR, or, up to where alpha
    = sigma, in alpha / sigma, in which x0 is smooth near pure noise. So the order holds from alpha = 0 too.

    Attributes:
        solver_order: at least 1.
        start: "rk4" makes the first solver_order - 1 steps with the classical Runge-Kutta rule, whose error the fifth
            order can bear: 3 more evaluations each; beyond the fifth, only what follows the start is of higher order.
            "low" lets the order grow step by step, in log-SNR all along, as published solvers do: no evaluation more,
            but then the first steps' error, of second order, stays.
    """

    solver_order: int = 3
    start: Literal["rk4", "low"] = "rk4"

    def __post_init__(self) -> None:
        check_fields(self, solver_order="[1, inf)")

    @property
    def order(self) -> int | None:
        return min(self.solver_order, 5 if self.start == "rk4" else 2)

    def nfe(self, steps: int) -> int:
        return steps + (3 * min(self.solver_order - 1, steps - 1) if self.start == "rk4" else 0)

    def init(self) -> State:
        return State()

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: State, noise: DrawNoise
    ) -> tuple[Tensor, State]:
        pred = f(x, t)
        here = Node(float(path.lam(t)), data_prediction(path, x, pred, t))
        after = State(state.done + 1, self.push_history(here, state.history))
        if s == 0:
            return path.interpolate(pred, s), after
        if self.start == "rk4" and state.done < self.solver_order - 1:
            return runge_kutta_step(CLASSICAL, f, path, x, pred, t, s), after
        out, lam = path.interpolate(pred, s), float(path.lam(s))
        if lam <= 0 and self.start == "rk4":
            nodes: History = (here, *state.history)
            scale, weights = float(path.sigma(s)), ratio_integrals(nodes, lam)
        else:
            nodes = self.usable_history(here, state.history)
            scale, weights = float(path.alpha(s)), integrals(nodes, nodes[0].lam, lam) if len(nodes) > 1 else [1.0]
        return add_corrections(out, [scale * w for w in weights], nodes), after

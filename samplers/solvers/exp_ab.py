"""Exponential Adams-Bashforth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.contracts import DenoiseFn, DrawNoise
from gen.diffusion.path import NoisePath
from gen.samplers.solvers.dpmpp_single import singlestep
from gen.samplers.solvers.lib.exponential import History, Multistep, Node, add_corrections, data_prediction, integrals

__all__ = ["ExpAB"]


class State(NamedTuple):
    """Steps done, and the values of x0 that they left, newest first."""

    done: int = 0
    history: History = ()


@dataclass(frozen=True)
class ExpAB(Multistep):
    """Exponential Adams-Bashforth of any order (Hochbruck & Ostermann 2010, section 2.5).

    x0 is extrapolated in log-SNR by a polynomial through its last values and integrated exactly; exact where x0 is such
    a polynomial.

    Attributes:
        solver_order: at least 1.
        start: "single" makes the first solver_order - 1 steps with DPM-Solver++(3S), whose error the fourth order can
            bear: 2 more evaluations each; beyond the fourth, only what follows the start is of higher order. "low" lets
            the order grow step by step, as published solvers do: no evaluation more, but then the first step's error,
            of second order, stays.
    """

    solver_order: int = 3
    start: Literal["single", "low"] = "single"

    def __post_init__(self) -> None:
        if self.solver_order < 1:
            raise UserError(f"ExpAB: solver_order = {self.solver_order}; it must be at least 1")

    @property
    def order(self) -> int | None:
        return min(self.solver_order, 4 if self.start == "single" else self.solver_order)

    def nfe(self, steps: int) -> int:
        return steps + (2 * min(self.solver_order - 1, steps - 1) if self.start == "single" else 0)

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
        if self.start == "single" and state.done < self.solver_order - 1:
            return singlestep(f, path, x, pred, t, s, 3), after
        nodes, lam, alpha = self.usable_history(here, state.history), float(path.lam(s)), float(path.alpha(s))
        out = path.interpolate(pred, s)
        if len(nodes) > 1:
            out = add_corrections(out, [alpha * w for w in integrals(nodes, nodes[0].lam, lam)], nodes)
        return out, after

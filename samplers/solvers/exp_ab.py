"""Exponential Adams-Bashforth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.path import NoisePath
from gen.diffusion.sampling import DenoiseFn
from gen.samplers.solvers.dpmpp_single import single
from gen.samplers.solvers.lib.exponential import Node, add, base, integrals, remember, usable

__all__ = ["ExpAB"]


class State(NamedTuple):
    """Steps done, at most as many as the start takes, and the values they left, newest first."""

    done: int = 0
    history: tuple[Node, ...] = ()


@dataclass(frozen=True)
class ExpAB:
    """Exponential Adams-Bashforth of any order: x0 extrapolated in log-SNR by a polynomial through its last values and
    integrated exactly (Hochbruck & Ostermann 2010, section 2.5); exact where x0 is such a polynomial.

    start: "single" makes the first solver_order - 1 steps with DPM-Solver++(3S), whose error the fourth order can bear:
    2 more evaluations each; beyond the fourth, only what follows the start is of higher order. "low" lets the order
    grow step by step, as published solvers do: nothing more, but then the first step's error, of second order, stays.
    """

    solver_order: int = 3
    start: Literal["single", "low"] = "single"

    def __post_init__(self) -> None:
        if self.solver_order < 1:
            raise UserError(f"ExpAB: solver_order = {self.solver_order}; it must be at least 1")

    @property
    def order(self) -> int:
        return min(self.solver_order, 4 if self.start == "single" else self.solver_order)

    def nfe(self, steps: int) -> int:
        return steps + (2 * min(self.solver_order - 1, steps - 1) if self.start == "single" else 0)

    def init(self) -> State:
        return State()

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, State]:
        pred = f(x, t)
        here = Node(float(path.lam(t)), base(path, x, pred, t))
        after = State(state.done + 1, remember(here, state.history, self.solver_order - 1))
        if s == 0:
            return path.interpolate(pred, s), after
        if self.start == "single" and state.done < self.solver_order - 1:
            return single(f, path, x, pred, t, s, 3), after
        nodes, lam, alpha = usable(here, state.history, self.solver_order), float(path.lam(s)), float(path.alpha(s))
        out = path.interpolate(pred, s)
        if len(nodes) > 1:
            out = add(out, [alpha * w for w in integrals(nodes, nodes[0].lam, lam)], nodes)
        return out, after

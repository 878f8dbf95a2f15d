"""Adams-Bashforth in t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gen.diffusion.contracts import DenoiseFn, DrawNoise
from gen.diffusion.path import NoisePath
from gen.samplers.solvers.lib.exponential import Multistep, lagrange, quadrature
from gen.samplers.solvers.lib.stages import CLASSICAL, MIDPOINT, Stage, Tableau, add_stage, runge_kutta_step

__all__ = ["FlowAdams"]


class State(NamedTuple):
    """Steps done, and the evaluations they left, newest first."""

    done: int = 0
    history: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class FlowAdams(Multistep):
    """Adams-Bashforth in t: x0 and eps extrapolated by polynomials through their last values, for uneven steps too.

    x_s = x_t + int alpha' x0 dt + int sigma' eps dt, integrated by parts so that no derivative of alpha or sigma is
    needed; on flow and EDM this is the classical rule on the velocity (Hairer et al. 1993, section III.1). The first
    solver_order - 1 steps are those of a Runge-Kutta rule in t, of full order at alpha = 0 too: the midpoint rule for
    the second order, 1 more evaluation each, the classical one beyond, 3 more; begun with Euler steps, it would be of
    second order only. The last step, to t = 0, has no evaluation there and keeps the order where sigma is smooth.

    Attributes:
        solver_order: 1 to 4 evaluations.
    """

    solver_order: int = 4

    orders: ClassVar[Sequence[int]] = (1, 2, 3, 4)

    @property
    def order(self) -> int | None:
        return self.solver_order

    @property
    def starter(self) -> Tableau:
        """The rule of the first steps."""
        return CLASSICAL if self.solver_order > 2 else MIDPOINT

    def nfe(self, steps: int) -> int:
        return steps + (len(self.starter.weights) - 1) * min(self.solver_order - 1, steps - 1)

    def init(self) -> State:
        return State()

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: State, noise: DrawNoise
    ) -> tuple[Tensor, State]:
        pred = f(x, t)
        stages = (Stage.of(path, x, pred, t), *state.history)
        after = State(state.done + 1, stages[: self.solver_order - 1])
        if state.done < self.solver_order - 1 and s > 0:
            return runge_kutta_step(self.starter, f, path, x, pred, t, s), after
        out = path.interpolate(pred, s)
        if len(stages) > 1:
            data, noises = _increments(path, [stage.t for stage in stages], float(s))
            for stage, a, b in zip(stages[1:], data[1:], noises[1:], strict=True):
                out = add_stage(out, stages[0], stage, a, b)
        return out, after


def _increments(path: NoisePath, nodes: Sequence[float], s: float) -> tuple[list[float], list[float]]:
    """int alpha' L_j dt and int sigma' L_j dt from nodes[0] to s, L_j the Lagrange polynomials of the nodes."""
    t, weight = quadrature(nodes[0], s)
    ends = lagrange(np.array([nodes[0], s]), nodes)
    slopes = weight * _derivatives(t, nodes)
    increments = []
    for c in (path.alpha, path.sigma):
        inside = c(torch.from_numpy(t)).numpy()
        first, last = (float(c(torch.tensor(end, dtype=torch.float64))) for end in (nodes[0], s))
        increments.append((last * ends[:, 1] - first * ends[:, 0] - (slopes * inside).sum(-1)).tolist())
    return increments[0], increments[1]


def _derivatives(t: np.ndarray, nodes: Sequence[float]) -> np.ndarray:
    """d L_j / dt at t [n], float64 [nodes, n]."""
    out = np.zeros((len(nodes), len(t)))
    for j, here in enumerate(nodes):
        for k, other in enumerate(nodes):
            if k != j:
                rest = [u for i, u in enumerate(nodes) if i not in (j, k)]
                product = np.prod([(t - u) / (here - u) for u in rest], axis=0) if rest else 1.0
                out[j] += product / (here - other)
    return out

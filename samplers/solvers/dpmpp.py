"""DPM-Solver++, multistep."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.path import NoisePath
from gen.diffusion.sampling import DenoiseFn
from gen.samplers.solvers.lib.exponential import Node, add, base, integrals, remember, usable

__all__ = ["DPMpp"]

State = tuple[Node, ...]


@dataclass(frozen=True)
class DPMpp:
    """DPM-Solver++(1M, 2M, 3M), the exponential integrator of x0 in log-SNR (Lu et al. 2022, algorithm 2).

    solver_order: 1, 2 or 3 values of x0. kind: the midpoint or the Heun form of the second order. compat: "diffusers"
    leaves out, as all published code does, a factor of 2 before the third order's second difference, which makes it
    second order only. The first steps, and any step from or to an infinite log-SNR, are of lower order.
    """

    solver_order: int = 2
    kind: Literal["midpoint", "heun"] = "midpoint"
    compat: Literal["diffusers"] | None = None

    def __post_init__(self) -> None:
        if self.solver_order not in (1, 2, 3):
            raise UserError(f"DPMpp: solver_order = {self.solver_order}; allowed: 1, 2, 3")

    @property
    def order(self) -> int:
        return 2 if self.compat and self.solver_order == 3 else self.solver_order

    def nfe(self, steps: int) -> int:
        return steps

    def init(self) -> State:
        return ()

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, State]:
        pred = f(x, t)
        out = path.interpolate(pred, s)
        if self.solver_order == 1:
            return out, ()
        here = Node(float(path.lam(t)), base(path, x, pred, t))
        nodes, lam = usable(here, state, self.solver_order), float(path.lam(s))
        if len(nodes) > 1 and math.isfinite(lam):
            alpha = float(path.alpha(s))
            out = add(out, [alpha * w for w in corrections(nodes, lam, self.kind, bool(self.compat))], nodes)
        return out, remember(here, state, self.solver_order - 1)


def corrections(nodes: State, end: float, kind: str, published: bool, rate: float = 1.0) -> list[float]:
    """The weight of each value's difference from the newest one, over alpha_s, in a step to lam = end.

    rate: 1 for the ODE, 1 + eta for the SDE.
    """
    h = end - nodes[0].lam
    if len(nodes) == 2 and kind == "midpoint":
        return [0.0, math.expm1(-rate * h) / 2 * h / (nodes[0].lam - nodes[1].lam)]
    weights = [rate * w for w in integrals(nodes, nodes[0].lam, end, rate)]
    if len(nodes) == 3 and published:
        phi = (math.expm1(-rate * h) / (rate * h) + 1) / (rate * h) - 0.5  # half of the second difference's share
        spans = nodes[0].lam - nodes[1].lam, nodes[1].lam - nodes[2].lam
        second = [0.0, -1 / (spans[0] * spans[1]), 1 / (spans[1] * sum(spans))]  # divided differences of (D1, D2)
        weights = [w + phi * h**2 * d for w, d in zip(weights, second, strict=True)]
    return weights

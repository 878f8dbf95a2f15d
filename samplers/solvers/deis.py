"""DEIS."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.path import NoisePath
from gen.diffusion.sampling import DenoiseFn
from gen.samplers.solvers.lib.exponential import Node, add, integrals, remember, usable

__all__ = ["DEIS"]

State = tuple[Node, ...]


@dataclass(frozen=True)
class DEIS:
    """DEIS, exponential Adams-Bashforth of eps: d(x / alpha) / drho = eps with rho = sigma / alpha, eps extrapolated by
    a polynomial in log rho, integrated exactly (Zhang & Chen 2023, section 3; the "log rho" form of diffusers).

    solver_order: 1 to 4 values of eps; 1 is DDIM. The first steps, and any step from or to an infinite log-SNR, are of
    lower order.
    """

    solver_order: int = 2

    def __post_init__(self) -> None:
        if self.solver_order not in (1, 2, 3, 4):
            raise UserError(f"DEIS: solver_order = {self.solver_order}; allowed: 1, 2, 3, 4")

    @property
    def order(self) -> int:
        return self.solver_order

    def nfe(self, steps: int) -> int:
        return steps

    def init(self) -> State:
        return ()

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, State]:
        pred = f(x, t)
        here = Node(float(path.lam(t)), pred.eps)
        out, lam = path.interpolate(pred, s), float(path.lam(s))
        nodes = usable(here, state, self.solver_order)
        if math.isfinite(lam) and len(nodes) > 1:
            sigma = float(path.sigma(s))  # alpha_s drho = -sigma_s e^-(lam - lam_s) dlam
            out = add(out, [-sigma * w for w in integrals(nodes, nodes[0].lam, lam, rate=-1.0)], nodes)
        return out, remember(here, state, self.solver_order - 1)

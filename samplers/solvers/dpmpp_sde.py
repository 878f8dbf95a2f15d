"""DPM-Solver++ for the reverse SDE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.path import NoisePath
from gen.diffusion.sampling import DenoiseFn
from gen.samplers.solvers.dpmpp import State, corrections
from gen.samplers.solvers.lib.exponential import Node, add, base, remember, usable

__all__ = ["DPMppSDE"]


@dataclass(frozen=True)
class DPMppSDE:
    """SDE-DPM-Solver++(1M, 2M, 3M): the exponential integrator of the reverse SDE (Lu et al. 2022, eq. 18).

    eta: 1 is the reverse SDE, 0 the ODE; between them the noise is scaled as in k-diffusion. s_noise scales it again.
    Its order, as a rule for the ODE, is that of DPMpp; of the SDE 1M has weak order 1 and 2M has 2. compat: see DPMpp.
    """

    solver_order: int = 2
    eta: float = 1.0
    s_noise: float = 1.0
    kind: Literal["midpoint", "heun"] = "midpoint"
    compat: Literal["diffusers"] | None = None

    def __post_init__(self) -> None:
        if self.solver_order not in (1, 2, 3) or self.eta < 0 or self.s_noise < 0:
            raise UserError(
                f"DPMppSDE: solver_order = {self.solver_order}, eta = {self.eta}, s_noise = {self.s_noise}; "
                "it must be an order of 1, 2, 3 and no negative number"
            )

    @property
    def order(self) -> int | None:
        if self.eta > 0:
            return None
        return 2 if self.compat and self.solver_order == 3 else self.solver_order

    def nfe(self, steps: int) -> int:
        return steps

    def init(self) -> State:
        return ()

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, State]:
        pred = f(x, t)
        here = Node(float(path.lam(t)), base(path, x, pred, t))
        if s == 0:
            return path.interpolate(pred, s), ()
        lam, alpha, sigma = float(path.lam(s)), float(path.alpha(s)), float(path.sigma(s))
        fresh = self.eta * (lam - here.lam) if self.eta else 0.0  # inf in a step from infinite noise
        out = torch.add(pred.x0 * alpha, pred.eps, alpha=sigma * math.exp(-fresh))
        nodes = usable(here, state, self.solver_order)
        if len(nodes) > 1:
            weights = corrections(nodes, lam, self.kind, bool(self.compat), 1 + self.eta)
            out = add(out, [alpha * w for w in weights], nodes)
        if self.eta:
            out = torch.add(out, noise(), alpha=sigma * math.sqrt(-math.expm1(-2 * fresh)) * self.s_noise)
        return out, remember(here, state, self.solver_order - 1)

"""DPM-Solver++ for the reverse SDE."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.contracts import DenoiseFn, DrawNoise
from gen.diffusion.path import NoisePath
from gen.samplers.solvers.dpmpp import DPMpp, correction_weights
from gen.samplers.solvers.lib.exponential import History, Node, add_corrections, data_prediction

__all__ = ["DPMppSDE"]


@dataclass(frozen=True)
class DPMppSDE(DPMpp):
    """SDE-DPM-Solver++(1M, 2M, 3M): the exponential integrator of the reverse SDE (Lu et al. 2022, eq. 18).

    Its order, as a rule for the ODE, is that of DPMpp; of the SDE 1M has weak order 1 and 2M has 2.

    Attributes:
        solver_order, kind, compat: as of DPMpp.
        eta: 1 is the reverse SDE, 0 the ODE; between them the noise is scaled as in k-diffusion.
        s_noise: a factor on the noise.
    """

    eta: float = 1.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, eta="[0, inf)", s_noise="[0, inf)")

    @property
    def order(self) -> int | None:
        return None if self.eta > 0 else super().order

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: History, noise: DrawNoise
    ) -> tuple[Tensor, History]:
        pred = f(x, t)
        here = Node(float(path.lam(t)), data_prediction(path, x, pred, t))
        if s == 0:
            return path.interpolate(pred, s), ()
        lam, alpha, sigma = float(path.lam(s)), float(path.alpha(s)), float(path.sigma(s))
        fresh = self.eta * (lam - here.lam) if self.eta else 0.0  # inf in a step from infinite noise
        out = torch.add(pred.x0 * alpha, pred.eps, alpha=sigma * math.exp(-fresh))
        nodes = self.usable_history(here, state)
        if len(nodes) > 1:
            weights = correction_weights(nodes, lam, self.kind, bool(self.compat), 1 + self.eta)
            out = add_corrections(out, [alpha * w for w in weights], nodes)
        if self.eta:
            out = torch.add(out, noise(), alpha=sigma * math.sqrt(-math.expm1(-2 * fresh)) * self.s_noise)
        return out, self.push_history(here, state)

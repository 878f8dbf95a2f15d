"""DEIS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.diffusion.contracts import DenoiseFn, DrawNoise
from gen.diffusion.path import NoisePath
from gen.samplers.solvers.lib.exponential import History, Multistep, Node, add_corrections, integrals

__all__ = ["DEIS"]


@dataclass(frozen=True)
class DEIS(Multistep):
    """DEIS, the exponential Adams-Bashforth rule of eps (Zhang & Chen 2023, section 3).

    d(x / alpha) / drho = eps with rho = sigma / alpha; eps is extrapolated by a polynomial in log rho and integrated
    exactly, the "log rho" form of diffusers. The first steps, and any step from or to an infinite log-SNR, are of lower
    order.

    Attributes:
        solver_order: 1 to 4 values of eps; 1 is DDIM.
    """

    orders: ClassVar[Sequence[int]] = (1, 2, 3, 4)

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: History, noise: DrawNoise
    ) -> tuple[Tensor, History]:
        pred = f(x, t)
        here = Node(float(path.lam(t)), pred.eps)
        out, lam = path.interpolate(pred, s), float(path.lam(s))
        nodes = self.usable_history(here, state)
        if math.isfinite(lam) and len(nodes) > 1:
            sigma = float(path.sigma(s))  # alpha_s drho = -sigma_s e^-(lam - lam_s) dlam
            weights = [-sigma * w for w in integrals(nodes, nodes[0].lam, lam, rate=-1.0)]
            out = add_corrections(out, weights, nodes)
        return out, self.push_history(here, state)

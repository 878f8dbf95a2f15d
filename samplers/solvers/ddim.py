"""DDIM."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.contracts import DenoiseFn, DrawNoise, Solver
from gen.diffusion.path import NoisePath

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM(Solver):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - u^2) eps + u z, with u = eta sigma_s sqrt(1 - e^(-2h)), h the log-SNR step.

    Song et al. 2021, eq. 12 and 16, written for any path.

    Attributes:
        eta: 0 is the ODE's first-order step, which is Euler's; 1 draws from the exact posterior q(x_s | x_t, x0), which
            is ancestral sampling of DDPM.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, eta="[0, 1]")

    @property
    def order(self) -> int | None:
        return None if self.eta else 1

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: DrawNoise
    ) -> tuple[Tensor, None]:
        pred = f(x, t)
        if not self.eta or s == 0:
            return path.interpolate(pred, s), None
        sigma, h = float(path.sigma(s)), float(path.lam(s) - path.lam(t))
        up = self.eta * sigma * math.sqrt(-math.expm1(-2 * h))
        out = torch.add(pred.x0 * float(path.alpha(s)), pred.eps, alpha=math.sqrt(max(sigma**2 - up**2, 0.0)))
        return torch.add(out, noise(), alpha=up), None

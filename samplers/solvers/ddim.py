"""DDIM."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.contracts import DenoiseFn, DrawNoise, Solver
from gen.diffusion.path import NoisePath, Prediction, expand

__all__ = ["DDIM"]


@dataclass(frozen=True)
class DDIM(Solver):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - u^2) eps + u z, with u = eta sigma_s sqrt(1 - e^(-2h)), h the step of lam.

    Song et al. 2021, eq. 12 and 16, written for any path.

    Attributes:
        eta: 0 is the ODE's first-order step, which is Euler's; 1 draws from the exact posterior q(x_s | x_t, x0), which
            is ancestral sampling of DDPM.
        kernel: "shift" has u = eta sigma_s sqrt(1 - sigma_s^2 / sigma_t^2) instead, the posterior of ResShift's chain,
            whose steps know x0 (Yue et al. 2023, eq. 7); for paths whose sigma falls with t.
        clip: x0 is cut to [-1, 1] and eps follows, as ADM samples pixels; not for latents.
    """

    eta: float = 0.0
    kernel: Literal["markov", "shift"] = "markov"
    clip: bool = False

    def __post_init__(self) -> None:
        check_fields(self, eta="[0, 1]")

    @property
    def order(self) -> int | None:
        return None if self.eta else 1

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: DrawNoise
    ) -> tuple[Tensor, None]:
        pred = self.predict(f, path, x, t)
        if not self.eta or s == 0:
            return path.interpolate(pred, s), None
        mean, up = self.posterior(path, pred, t, s)
        return torch.add(mean, noise(), alpha=up), None

    def predict(self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor) -> Prediction:
        """Return the prediction at x_t, clipped or not."""
        pred = f(x, t)
        if not self.clip:
            return pred
        x0 = pred.x0.clamp(-1, 1)
        return pred.replace(x0, pred.eps + expand(path.alpha(t) / path.sigma(t), x) * (pred.x0 - x0))

    def posterior(self, path: NoisePath, pred: Prediction, t: Tensor, s: Tensor) -> tuple[Tensor, float]:
        """Return mean [B, ...] and deviation u of x_s, s > 0."""
        sigma = float(path.sigma(s))
        if self.kernel == "markov":
            up = self.eta * sigma * math.sqrt(-math.expm1(-2 * float(path.lam(s) - path.lam(t))))
        else:
            up = self.eta * sigma * math.sqrt(max(1 - (sigma / float(path.sigma(t))) ** 2, 0.0))
        rest = math.sqrt(max(sigma**2 - up**2, 0.0))
        return torch.add(pred.x0 * float(path.alpha(s)), pred.eps, alpha=rest), up

"""SiT's own discretisation of the reverse SDE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.contracts import DenoiseFn, DrawNoise, Solver
from gen.diffusion.path import NoisePath, Prediction, expand

__all__ = ["SiTSDE"]


@dataclass(frozen=True)
class SiTSDE(Solver):
    """dx = (u + w eps / sigma) dt + sqrt(2 w) dW backwards in t, step by step as SiT, REPA and REG publish it.

    Ma et al. 2024, section 3.5; u is the velocity and w, which their code calls the diffusion, is that of the step's
    start. On the flow path REPA's is form "sigma" with norm 1. flow_sde solves the same SDE more accurately.

    Attributes:
        method: Euler-Maruyama, or their Heun, which adds the step's noise before its first evaluation.
        form: w as a function of r = t / t1, per unit of r: "constant" norm, "sbdm" the w that the path's own forward
            SDE has (infinite at alpha = 0), "sigma" norm sigma, "linear" norm r, "decreasing"
            (1 - norm cos(pi r))^2 / 4, "increasing-decreasing" norm sin^2(pi r).
        norm: factor on w; in "decreasing" that of the wave.
        last: the step to t = 0: "x0" is the predicted data, "mean" the SDE's step without its noise, which published
            loops take from t = 0.04 and which leaves a part of eps.
    """

    method: Literal["euler", "heun"] = "euler"
    form: Literal["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"] = "sigma"
    norm: float = 1.0
    last: Literal["x0", "mean"] = "x0"

    def __post_init__(self) -> None:
        check_fields(self, norm="[0, inf)")

    def nfe(self, steps: int) -> int:
        return 2 * steps - 1 if self.method == "heun" else steps

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: DrawNoise
    ) -> tuple[Tensor, None]:
        dt, w = s - t, self.diffusion(path, t)
        spread = math.sqrt(2 * w * float(t - s))
        if s == 0 or self.method == "euler":
            pred = f(x, t)
            if s == 0 and self.last == "x0":
                return path.interpolate(pred, s), None
            mean = x + expand(dt, x) * self.drift(path, pred, t)
            return (mean if s == 0 else torch.add(mean, noise(), alpha=spread)), None
        x = torch.add(x, noise(), alpha=spread)
        first = self.drift(path, f(x, t), t)
        second = self.drift(path, f(x + expand(dt, x) * first, s), s)
        return x + expand(dt / 2, x) * (first + second), None

    def drift(self, path: NoisePath, pred: Prediction, t: Tensor) -> Tensor:
        """Return u + w eps / sigma, [B, ...]."""
        return torch.add(path.velocity(pred, t), pred.eps, alpha=self.diffusion(path, t) / float(path.sigma(t)))

    def diffusion(self, path: NoisePath, t: Tensor) -> float:
        """Return w at t, per unit of t."""
        r, sigma = float(t) / path.t1, float(path.sigma(t))
        if self.form == "sbdm":
            alpha = float(path.alpha(t))
            slope = float(path.dalpha(t)) / alpha if alpha else -math.inf
            return self.norm * (sigma * float(path.dsigma(t)) - sigma**2 * slope)
        values = {
            "constant": self.norm,
            "sigma": self.norm * sigma,
            "linear": self.norm * r,
            "decreasing": (1 - self.norm * math.cos(math.pi * r)) ** 2 / 4,
            "increasing-decreasing": self.norm * math.sin(math.pi * r) ** 2,
        }
        return values[self.form] / path.t1

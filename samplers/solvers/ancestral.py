"""Ancestral sampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.contracts import DenoiseFn, DrawNoise
from gen.diffusion.denoiser import LearnedVariance
from gen.diffusion.path import NoisePath
from gen.samplers.solvers.ddim import DDIM

__all__ = ["Ancestral"]


@dataclass(frozen=True)
class Ancestral(DDIM):
    """Euler down to a lower noise level and fresh noise up again: DDPM's sampler (Ho et al. 2020, algorithm 2).

    On EDM it is "Euler ancestral" of k-diffusion; on every path it is DDIM with eta = 1. DiT and ADM are published with
    variance = "learned".

    Attributes:
        eta, clip: as of DDIM; a smaller eta adds less noise.
        variance: of a step, at eta 1: "posterior" that of q(x_s | x_t, x0), the smaller one; "beta" that of the noise
            from s to t; "learned" between the two in log space, as the network says (Nichol & Dhariwal 2021, eq. 15).
    """

    eta: float = 1.0
    variance: Literal["posterior", "beta", "learned"] = "posterior"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance != "posterior" and self.eta != 1:
            raise UserError(f"Ancestral: eta = {self.eta} beside variance = {self.variance!r}; give one of the two")

    @property
    def reads_variance(self) -> bool:
        return self.variance == "learned"

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: DrawNoise
    ) -> tuple[Tensor, None]:
        if self.variance == "posterior" or s == 0:
            return super().step(f, path, x, t, s, state, noise)
        pred = self.predict(f, path, x, t)
        mean, up = self.posterior(path, pred, t, s)
        high = up * float(path.sigma(t) / path.sigma(s))  # the root of beta
        if self.variance == "beta":
            return torch.add(mean, noise(), alpha=high), None
        if not isinstance(pred, LearnedVariance):
            raise UserError(
                "Ancestral: variance = 'learned', but this denoiser has learned none; allowed: posterior, beta"
            )
        share = (pred.interpolation + 1) / 2
        return torch.addcmul(mean, (math.log(up) + share * math.log(high / up)).exp(), noise()), None

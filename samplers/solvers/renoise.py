"""Denoise, then noise again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.contracts import DenoiseFn, DrawNoise, Solver
from gen.diffusion.path import NoisePath, Prediction

__all__ = ["Renoise"]


@dataclass(frozen=True)
class Renoise(Solver):
    """x_s = alpha_s x0(x_t) + sigma_s z with fresh z: the few-step sampler of consistency models, LCM and DMD2.

    Song et al. 2023, algorithm 1. It follows no ODE, so it has no order. With fresh < 1, as DDNM and DiffPIR have it,
    the noise is sqrt(1 - fresh^2) eps(x_t) + fresh z; however many steps there are, samples then have a share
    (1 + sqrt(1 - fresh^2)) / 2 of the data's variance.

    Attributes:
        fresh: share of the noise's deviation that is drawn anew.
    """

    fresh: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, fresh="(0, 1]")

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: DrawNoise
    ) -> tuple[Tensor, None]:
        pred: Prediction = f(x, t)
        if s == 0:
            return pred.x0, None
        z = noise()
        if self.fresh < 1:
            z = math.sqrt(1 - self.fresh**2) * pred.eps + self.fresh * z
        return path.mix(pred.x0, z, s), None

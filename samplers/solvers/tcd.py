"""Strategic stochastic sampling of trajectory consistency models."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.contracts import DenoiseFn, DrawNoise, Solver
from gen.diffusion.path import NoisePath

__all__ = ["TCD"]


@dataclass(frozen=True)
class TCD(Solver):
    """A DDIM step past s down to s' = (1 - eta) s, and fresh noise up to s again (Zheng et al. 2024, algorithm 4).

    Called gamma-sampling in CTM (Kim et al. 2024). It follows no ODE unless eta is 0, which is DDIM; 1 is `renoise`.

    Attributes:
        eta: TCD's gamma, the share of s that noise is drawn for.
        whole: s' is an entry of a table, rounded down, as in public code; for paths whose t = k + 1 is entry k.
    """

    eta: float = 0.3
    whole: bool = False

    def __post_init__(self) -> None:
        check_fields(self, eta="[0, 1]")

    @property
    def order(self) -> int | None:
        return None if self.eta else 1

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: DrawNoise
    ) -> tuple[Tensor, None]:
        pred = f(x, t)
        if not self.eta or float(s) <= self.whole:
            return path.interpolate(pred, s), None
        low = ((1 - self.eta) * (s - 1)).floor() + 1 if self.whole else (1 - self.eta) * s
        ratio = float(path.alpha(s) / path.alpha(low))
        up = math.sqrt(max(float(path.sigma(s)) ** 2 - (ratio * float(path.sigma(low))) ** 2, 0.0))
        return torch.add(path.interpolate(pred, low) * ratio, noise(), alpha=up), None

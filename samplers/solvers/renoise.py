"""Denoise, then noise again."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.diffusion.contracts import DenoiseFn, DrawNoise, Solver
from gen.diffusion.path import NoisePath

__all__ = ["Renoise"]


@dataclass(frozen=True)
class Renoise(Solver):
    """x_s = alpha_s x0(x_t) + sigma_s z with fresh z: the few-step sampler of consistency models, LCM and DMD2.

    Song et al. 2023, algorithm 1. It follows no ODE, so it has no order.
    """

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: DrawNoise
    ) -> tuple[Tensor, None]:
        x0 = f(x, t).x0
        return (x0 if s == 0 else path.mix(x0, noise(), s)), None

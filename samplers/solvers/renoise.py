"""Denoise, then noise again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.diffusion.path import NoisePath
from gen.diffusion.sampling import DenoiseFn

__all__ = ["Renoise"]


@dataclass(frozen=True)
class Renoise:
    """x_s = alpha_s x0(x_t) + sigma_s z with fresh z: the few-step sampler of consistency models (Song et al. 2023,
    algorithm 1), LCM and DMD2. It follows no ODE, so it has no order."""

    order: ClassVar[None] = None

    def nfe(self, steps: int) -> int:
        return steps

    def init(self) -> None:
        return None

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: None, noise: Callable[[], Tensor]
    ) -> tuple[Tensor, None]:
        x0 = f(x, t).x0
        return (x0 if s == 0 else path.mix(x0, noise(), s)), None

"""Denoise, then noise again with the noise that the loop began with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.contracts import DenoiseFn, DrawNoise, Solver
from gen.diffusion.path import NoisePath

__all__ = ["FixedNoise"]


@dataclass(frozen=True)
class FixedNoise(Solver):
    """x_s = alpha_s x0(x_t) + sigma_s z with the z of the start: the "new" sampler of rf++ (Lee et al. 2024).

    On straight paths, where eps stays z, it is Euler; elsewhere errors of eps do not add up. It follows no ODE, so it
    has no order. A loop that begins on the way, from a noised image, takes the noise predicted there.

    Attributes:
        method: "heun" also evaluates at the Euler step's end and takes x0 from the mean of both ends' slopes, as the
            published code does: 2N - 1 evaluations.
    """

    method: Literal["euler", "heun"] = "euler"

    def __post_init__(self) -> None:
        check_fields(self)

    def nfe(self, steps: int) -> int:
        return 2 * steps - 1 if self.method == "heun" else steps

    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: Tensor | None, noise: DrawNoise
    ) -> tuple[Tensor, Tensor]:
        here, in_noise = f(x, t), float(t) >= 0.99 * path.t1  # x = sigma z
        z = (x / float(path.sigma(t)) if in_noise else here.eps) if state is None else state
        x0 = here.x0
        if s == 0:
            return x0, z
        if self.method == "heun":
            there = f(path.mix(x0, z, s), s)
            data, eps = (here.x0 + there.x0) / 2, (here.eps + there.eps) / 2
            x0 = x + (1 - float(path.alpha(t))) * data - float(path.sigma(t)) * eps  # from t to 0 along the mean
        return path.mix(x0, z, s), z

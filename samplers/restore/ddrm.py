"""Denoising diffusion restoration: every singular direction by itself."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise
from gen.operators.lib.operator import Operator
from gen.samplers.grids.karras import Karras
from gen.samplers.restore.lib.restorer import Restorer, level

__all__ = ["DDRM"]


@dataclass(frozen=True)
class DDRM(Restorer):
    """A step for each coordinate of A's singular value decomposition, by how noisy its measurement is (Kawar 2022).

    In units of x / alpha, with s the level of the next step, ybar = U'y / s_i, whose noise is noise / s_i, and z fresh:
    what is not measured becomes x0 + sqrt(1 - eta^2) s eps + eta s z; what is measured with more noise than s,
    x0 + sqrt(1 - eta^2) s (ybar - x0) s_i / noise + eta s z; and the rest
    (1 - eta_b) x0 + eta_b ybar + sqrt(s^2 - (eta_b noise / s_i)^2) z. The public code takes V' for V in the first of
    them, which is right for a symmetric V alone.

    Attributes:
        noise: standard deviation of the measurement's noise.
        eta: 0.85 as published.
        eta_b: 1 as published.
        steps: number of levels; 20 as published.
        grid: its times.
    """

    noise: float = 0.0
    eta: float = 0.85
    eta_b: float = 1.0
    steps: int = 20
    grid: Grid = part("samplers.grids", default=Karras())

    def __post_init__(self) -> None:
        check_fields(self, noise="[0, inf)", eta="[0, 1]", eta_b="[0, 1]", steps="[1, inf)")

    @torch.no_grad()
    def restore(
        self,
        denoise: DenoiserLike,
        y: Tensor,
        operator: Operator,
        shape: tuple[int, ...],
        noise: Noise,
        cond: Cond | None = None,
    ) -> Tensor:
        if (svd := operator.svd()) is None:
            other = "pigdm" if operator.linear else "dps"
            raise UserError(f"ddrm needs a singular value decomposition, and {operator!r} has none: take {other}")
        path, times = denoise.path, self.grid.times(denoise.path, self.steps)
        s_i = svd.s.to(y)
        seen = s_i > 0
        size = torch.where(seen, s_i, 1)
        known, spread = svd.Ut(y) / size, torch.where(seen, self.noise / size, torch.inf)

        def draw(name: int | str) -> Tensor:
            return svd.Vt(noise.normal(name, shape[1:]).to(y))

        high = level(path, times[0])
        z = draw("start")  # as if x0 were 0 where nothing is known
        known_start = known + (high**2 - spread**2).clamp(min=0).sqrt() * z
        coordinates = torch.where(seen & (spread <= high), known_start, high * z)
        x = svd.V(coordinates)
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            pred = denoise(x * path.alpha(t).to(x), t, cond)
            low = level(path, s)
            z, x0, eps = draw(i), svd.Vt(pred.x0), svd.Vt(pred.eps)
            kept = (1 - self.eta**2) ** 0.5 * low
            free = x0 + kept * eps + self.eta * low * z
            noisy = x0 + kept * (known - x0) / spread.clamp(min=1e-30) + self.eta * low * z
            rest = (low**2 - (self.eta_b * spread) ** 2).clamp(min=0).sqrt()
            clear = (1 - self.eta_b) * x0 + self.eta_b * known + rest * z
            x = svd.V(torch.where(seen, torch.where(spread > low, noisy, clear), free))
        return x

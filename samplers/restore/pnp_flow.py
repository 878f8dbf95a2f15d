"""Plug-and-play restoration with a flow's denoiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise
from gen.operators.lib.operator import Operator
from gen.samplers.grids.natural import Natural
from gen.samplers.restore.lib.restorer import Restorer, descended, flow_time, unit_rate

__all__ = ["PnPFlow"]


@dataclass(frozen=True)
class PnPFlow(Restorer):
    """x = the mean over draws of x0(mix(z, noise, t)), z = x - rate t^power A'(A x - y) (Martin et al. 2025, PnP-Flow).

    A step of gradient descent, then noise and the denoiser, from high levels to low ones. It is an estimate near the
    posterior mean and no sample: without the noise of its few draws it would always be the same. On another path than
    flow's t is sigma / (alpha + sigma).

    Attributes:
        rate: of the descent, in units of 1 / |A|^2 for a linear operator; 1 as published, for |A| = 1.
        power: of t; as published 0.8 to denoise, 0.5 for boxes, 0.3 for downsampling, 0.01 for blurs and random pixels.
        draws: of noise in each step; 5 as published.
        steps: 100 as published. The network is evaluated `draws` times in each.
        grid: its times.
    """

    rate: float = 1.0
    power: float = 0.5
    draws: int = 5
    steps: int = 100
    grid: Grid = part("samplers.grids", default=Natural())

    def __post_init__(self) -> None:
        check_fields(self, rate="(0, 2)", power="[0, inf)", draws="[1, inf)", steps="[1, inf)")

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
        path, x, rate = denoise.path, y.new_zeros(shape), self.rate * unit_rate(operator)
        for i, t in enumerate(self.grid.times(path, self.steps)[:-1]):
            z = descended(operator, x, y, rate * flow_time(path, t) ** self.power)
            x = torch.zeros_like(z)
            for draw in range(self.draws):
                eps = noise.normal(f"{i} {draw}", shape[1:]).to(y)
                x = x + denoise(path.mix(z, eps, t), t, cond).x0 / self.draws
        return x

"""Posterior sampling with a flow: x0 is moved towards the measurement, eps towards fresh noise."""

from __future__ import annotations

import itertools
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

__all__ = ["FlowDPS"]


@dataclass(frozen=True)
class FlowDPS(Restorer):
    """x_s of (1 - t) x0 + t x0' and sqrt(s) eps + sqrt(1 - s) z, z fresh (Kim et al. 2025, FlowDPS).

    x0' is x0 after steps of gradient descent on |y - A x0|^2 / 2, which never asks for the network's derivative; the
    public code descends on the norm of A'(y - A x0), by a step of 15 that goes with the size of its latents. On another
    path than flow's t and s are sigma / (alpha + sigma).

    Attributes:
        rate: of the descent, in units of 1 / |A|^2 for a linear operator.
        descents: its steps; 3 as in the public code.
        steps: 28 as in the public code.
        grid: its times.
    """

    rate: float = 1.0
    descents: int = 3
    steps: int = 28
    grid: Grid = part("samplers.grids", default=Natural())

    def __post_init__(self) -> None:
        check_fields(self, rate="(0, 2)", descents="[1, inf)", steps="[1, inf)")

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
        path, times = denoise.path, self.grid.times(denoise.path, self.steps)
        rate = self.rate * unit_rate(operator)
        x = path.start(noise.normal("start", shape[1:]).to(y), times[0])
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            pred, z, low = denoise(x, t, cond), noise.normal(i, shape[1:]).to(y), flow_time(path, s)
            x0 = torch.lerp(pred.x0, descended(operator, pred.x0, y, rate, self.descents), flow_time(path, t))
            x = path.mix(x0, low**0.5 * pred.eps + (1 - low) ** 0.5 * z, s)
        return x

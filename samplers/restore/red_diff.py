"""Restoration as optimisation, regularised by the denoiser at every level of noise."""

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
from gen.samplers.grids.karras import Karras
from gen.samplers.restore.lib.restorer import Restorer, level

__all__ = ["REDDiff"]


@dataclass(frozen=True)
class REDDiff(Restorer):
    """Adam on mean |y - A mu|^2 / 2 + weight sigma / alpha mean((eps(x_t) - eps) mu) (Mardani et al. 2024, RED-diff).

    x_t is mu with noise eps, one level in each step from high to low, and nothing is differentiated by the network. mu
    begins with A+ y, or 0 where A is not linear. It is an estimate, neither mean nor sample of the posterior: for
    Gaussian data N(m, S) it tends to A'(A mu - y) / numbers of y + W (mu - m) / numbers of x = 0, W the mean of weight
    s^2 (S + s^2)^-1 over the levels s = sigma / alpha.

    Attributes:
        weight: of the regulariser; 0.25 as published.
        lr, betas: of Adam; as published.
        steps: 50 in the published default experiment, 1000 in the paper.
        grid: its times.
    """

    weight: float = 0.25
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    steps: int = 50
    grid: Grid = part("samplers.grids", default=Karras())

    def __post_init__(self) -> None:
        check_fields(self, weight="[0, inf)", lr="(0, inf)", betas="[0, 1)", steps="[1, inf)")

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
        mu = operator.pinv(y).clone() if operator.linear else y.new_zeros(shape)  # Adam writes to it
        optimiser = torch.optim.Adam([mu], self.lr, self.betas)
        for i, t in enumerate(self.grid.times(denoise.path, self.steps)[:-1]):
            mu.grad = self.gradient(denoise, mu, y, operator, t, noise.normal(i, shape[1:]).to(y), cond)
            optimiser.step()
        return mu

    def gradient(
        self, denoise: DenoiserLike, mu: Tensor, y: Tensor, operator: Operator, t: Tensor, eps: Tensor,
        cond: Cond | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the gradient of one step, [B, ...].

        Args:
            denoise: the prior.
            mu: the estimate, [B, ...].
            y, operator: the measurement.
            t: the level of noise, 0-d.
            eps: the noise, [B, ...].
            cond: of the prior.
        """
        wrong = operator.vjp(mu, operator.A(mu) - y) / y[0].numel()
        found = denoise(denoise.path.mix(mu, eps, t), t, cond).eps
        return wrong + self.weight * level(denoise.path, t) * (found - eps) / mu[0].numel()

"""Restoration by the noise whose sample agrees with the measurement."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid, Solver
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise
from gen.diffusion.path import expand
from gen.diffusion.sampling import integrate
from gen.operators.lib.operator import Operator
from gen.samplers.grids.natural import Natural
from gen.samplers.restore.lib.descent import minimised
from gen.samplers.restore.lib.restorer import Restorer
from gen.samplers.solvers.midpoint import Midpoint

__all__ = ["DFlow"]


@dataclass(frozen=True)
class DFlow(Restorer):
    """The sample of argmin |y - A sample(z)|^2 + weight (|z|^2 / 2 - (d - 1) log |z|) (Ben-Hamu et al. 2024, D-Flow).

    z [d] is the noise that the loop begins with. L-BFGS differentiates the whole loop, whose steps are all kept in
    memory. The regulariser holds |z| near that of noise. Without it, and for Gaussian data measured without noise,
    samples are exactly those of the posterior; with a measurement's noise they fit it, too. The public code begins with
    a tenth of the noise that leads to A+ y; here it is the sample's own alone.

    Attributes:
        weight: of the regulariser; 0.01 as published.
        iterations: of L-BFGS, each at least one loop; 20 times 20 as published.
        solver: a rule for the ODE; midpoint as published.
        steps: of the solver; 6 as published.
        grid: its times.
    """

    weight: float = 0.01
    iterations: int = 100
    solver: Solver = part("samplers.solvers", default=Midpoint())
    steps: int = 6
    grid: Grid = part("samplers.grids", default=Natural())

    def __post_init__(self) -> None:
        check_fields(self, weight="[0, inf)", iterations="[1, inf)", steps="[1, inf)")

    def restore(
        self,
        denoise: DenoiserLike,
        y: Tensor,
        operator: Operator,
        shape: tuple[int, ...],
        noise: Noise,
        cond: Cond | None = None,
    ) -> Tensor:
        times = self.grid.times(denoise.path, self.steps)

        def sample(z: Tensor) -> Tensor:
            return integrate(denoise, denoise.path.start(z, times[0]), times, self.solver, cond=cond, noise=noise)

        def loss(z: Tensor) -> tuple[Tensor, Tensor]:
            leaf = z.detach().requires_grad_()
            with torch.enable_grad():
                x = sample(leaf)
            wrong = y - operator.A(x.detach())
            gradient = torch.autograd.grad(x, leaf, -2 * operator.vjp(x.detach(), wrong))[0]
            value = wrong.flatten(1).square().sum(1)
            if self.weight:
                prior, slope = _unlikely(z)
                value, gradient = value + self.weight * prior, gradient + self.weight * slope
            return value, gradient

        with torch.no_grad():
            return sample(minimised(loss, noise.normal("start", shape[1:]).to(y), self.iterations))


def _unlikely(z: Tensor) -> tuple[Tensor, Tensor]:
    """The negative log density of |z| for unit noise, up to a constant, [B], and its gradient."""
    square, d = z.flatten(1).square().sum(1), z[0].numel()
    return square / 2 - (d - 1) / 2 * square.log(), expand(1 - (d - 1) / square, z) * z

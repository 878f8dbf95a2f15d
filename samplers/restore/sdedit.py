"""Restoration by noising a first guess and denoising it again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid, Solver
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise
from gen.diffusion.sampling import integrate
from gen.operators.lib.operator import Operator
from gen.samplers.grids.karras import Karras
from gen.samplers.restore.lib.restorer import Restorer
from gen.samplers.solvers.ancestral import Ancestral

__all__ = ["SDEdit"]


@dataclass(frozen=True)
class SDEdit(Restorer):
    """A sample that begins with A+ y at the grid's first level of noise (Meng et al. 2022, SDEdit).

    Nothing else is known of the measurement, so samples agree with it as far as that level lets through. For Gaussian
    data N(m, S) and a rule for the ODE, with T = (S (S + level^2)^-1)^(1/2), samples are N(m + T (A+ y - m),
    level^2 T T').

    Attributes:
        solver: default ancestral sampling, the paper's SDE.
        steps: of the solver.
        grid: its times; the first, sigma / alpha = 1 by default, is the level: the lower, the nearer to A+ y.
    """

    solver: Solver = part("samplers.solvers", default=Ancestral())
    steps: int = 100
    grid: Grid = part("samplers.grids", default=Karras(sigma_max=1.0))

    def __post_init__(self) -> None:
        check_fields(self, steps="[1, inf)")

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
        times = self.grid.times(denoise.path, self.steps)
        x = denoise.path.mix(operator.pinv(y), noise.normal("start", shape[1:]).to(y), times[0])
        return integrate(denoise, x, times, self.solver, cond=cond, noise=noise)

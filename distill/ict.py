"""iCT: consistency training that needs no teacher, no target network and no learned distance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.path import NoisePath
from gen.distillers.lib.consistency import check_boundary, consistency_losses, output_stats, sigma_of_t
from gen.distillers.lib.times import mean_over
from gen.distillers.lib.velocity import check_roles
from gen.samplers.grids.coarse import Coarse
from gen.samplers.grids.karras import Karras
from gen.training.distillation import Distiller
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import drop_condition
from gen.training.run import Run, Sampler

__all__ = ["ICT"]


@dataclass(frozen=True)
class ICT(Distiller):
    """Improved consistency training (Song & Dhariwal 2024).

    The loss is the pseudo-Huber distance of f(x_t, t) and sg f(x_r, r) over sigma_t - sigma_r, for neighbours t > r of
    a grid. f is the x0 of the prediction; both points have the same data, noise, dropout and weights: an average as the
    target is what the paper removes. sigma is the noise level sigma / alpha, so that each path has EDM's weights. The
    loss grows with N and says nothing of quality.

    Attributes:
        grid: the times t, and 0.
        grid_steps: s0 and s1 of the grid's number of steps N(k) = min(s0 2^floor(k / double_every), s1) + 1; the
            paper's.
        double_every: updates after which the steps double; in the paper K / (log2(s1 / s0) + 1), 50,000 of 400,000.
        mean, std: intervals are drawn by the probability that ln sigma ~ N(mean, std^2) falls into them; table 1.
        huber: c / sqrt(d) of the pseudo-Huber distance, at least 0; the paper's.
        class_dropout: probability that a condition is replaced by the null one.
    """

    grid: Grid = part("samplers.grids", default=Karras())
    grid_steps: tuple[int, int] = (10, 1280)
    double_every: int = 1250
    mean: float = -1.1
    std: float = 2.0
    huber: float = 0.00054
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, double_every="[1, inf)", std="(0, inf)", huber="[0, inf)", class_dropout="[0, 1]")
        if not 1 <= self.grid_steps[0] <= self.grid_steps[1]:
            raise UserError(f"ICT: grid_steps = {self.grid_steps}; it must be 1 <= first <= last")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run from its weights, sampled in one step."""
        check_boundary(run.path, run.parameterisation, "ICT")
        return replace(run, objective=self, teacher=None, init=str(teacher), sampler=self.sampler)

    @property
    def sampler(self) -> Sampler:
        """One step from the noisiest time that was trained, and more at others that were."""
        return Sampler("renoise", steps=1, grid=Coarse(self.grid, self.grid_steps[1] + 1))

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_roles("ICT", net, teacher)
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f, n = roles["net"], self.steps_at(batch.step)
        check_boundary(f.path, f.parameterisation, "ICT")
        i = self.intervals(batch.noise.uniform("interval"), f.path, n)
        losses, x0 = self.losses(f, batch, drop_condition(f, batch, self.class_dropout), n, i)
        yield "net", losses.mean(), {"grid_steps": torch.tensor(float(n), device=losses.device), **output_stats(x0)}

    def steps_at(self, update: int) -> int:
        """Return N(k), the number of times above 0."""
        s0, s1 = self.grid_steps
        doublings = min(update // self.double_every, math.ceil(math.log2(s1 / s0)))
        return min(s0 * 2**doublings, s1) + 1

    def intervals(self, u: Tensor, path: NoisePath, n: int) -> Tensor:
        """Return the interval of the grid, 0 the noisiest, in which each of uniform numbers u [B] falls."""
        sigma = sigma_of_t(path, self.grid.times(path, n))  # falling, the last one 0
        below = torch.special.ndtr((sigma.log() - self.mean) / self.std)
        share = (below[0] - below[1:]) / (below[0] - below[-1])  # of the noise levels, down to the end of interval i
        return torch.searchsorted(share, u.to(share), right=True).clamp(max=n - 1)

    def losses(self, f: DenoiserLike, batch: Batch, cond: Cond, n: int, i: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each sample [B] on intervals i [B] of n, 0 the noisiest, and f(x_t, t)."""
        times = self.grid.times(f.path, n)
        t, r = batch.to_device(times[i]), batch.to_device(times[i + 1])
        return consistency_losses(f, f, batch, cond, t, r, self.huber)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the mean loss on 8 intervals of the last grid, midpoints of equal shares of the training density."""
        f, n = roles["net"], self.grid_steps[1] + 1
        at = self.intervals((torch.arange(8, dtype=torch.float64) + 0.5) / 8, f.path, n)
        return mean_over(at, batch, lambda i: self.losses(f, batch, batch.cond, n, i)[0])

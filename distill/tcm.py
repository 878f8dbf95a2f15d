"""TCM: a consistency model's second stage, which spends the network on the noisy times alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.diffusion.tap import Tap
from gen.distillers.lib.consistency import (
    check_boundary,
    consistency_losses,
    ect_next_time,
    output_stats,
    sigma_of_t,
    t_of_sigma,
)
from gen.distillers.lib.networks import forked_rng, frozen_copy
from gen.distillers.lib.times import mean_over
from gen.distillers.lib.velocity import check_roles
from gen.samplers.grids.karras import Karras
from gen.training.distillation import Distiller
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import Denoising, drop_condition
from gen.training.run import Run, Sampler

__all__ = ["TCM", "TruncatedConsistency"]


@dataclass(frozen=True, eq=False)
class TruncatedConsistency:
    """The consistency model of both stages, as a denoiser.

    Attributes:
        first_stage: the frozen model, below `transition`.
        second_stage: the model that is trained, from `transition` on.
        transition: the noise level sigma / alpha between them.
    """

    first_stage: DenoiserLike
    second_stage: DenoiserLike
    transition: float

    @property
    def path(self) -> NoisePath:
        return self.second_stage.path

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        above = (sigma_of_t(self.path, t) >= self.transition).expand(len(x))
        if bool(above.all()):
            return self.second_stage(x, t, cond, s=s, tap=tap)
        with forked_rng(x):
            first = self.first_stage(x, t, cond, s=s, tap=tap)
        if not bool(above.any()):
            return first
        rows, second = expand(above, x).bool(), self.second_stage(x, t, cond, s=s, tap=tap)
        return Prediction(torch.where(rows, second.x0, first.x0), torch.where(rows, second.eps, first.eps))

    def null(self, cond: Cond) -> Cond:
        return self.second_stage.null(cond)


@dataclass(frozen=True)
class TCM(Distiller):
    """Truncated consistency models (Lee et al. 2024).

    ECT's loss above a noise level only, the first stage being the target below. The run starts from the weights of a
    consistency model, by ECT say (Run.init, or the teacher of a distillation); their frozen copy is the role
    "first_stage". A share `boundary` of the samples is put at `transition`, where the first stage is the target and
    keeps the second from collapsing; the pair of times is ECT's, at one fixed gap. Below `transition` the student is
    undefined: its sampler stays above. The loss says nothing of quality.

    Attributes:
        transition: sigma', the noise level sigma / alpha from which on the student is trained; FastGen's.
        sigma_max: the highest noise level.
        dof, mean, std: ln sigma has a Student's t density of so many degrees of freedom about mean with scale std, cut
            to [ln transition, ln sigma_max]; FastGen's.
        boundary: share of samples at `transition`, in (0, 1); FastGen's.
        boundary_weight: weight of their mean loss beside that of the others; FastGen's.
        gap, sharpness, slope, huber, class_dropout: see ECT.
    """

    transition: float = 1.0
    sigma_max: float = 80.0
    dof: float = 0.01
    mean: float = 0.0
    std: float = 0.2
    boundary: float = 0.25
    boundary_weight: float = 0.1
    gap: float = 2**-8
    sharpness: float = 8.0
    slope: float = 1.0
    huber: float = 0.0
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, dof="(0, inf)", std="(0, inf)", boundary="(0, 1)", boundary_weight="[0, inf)")
        check_fields(self, gap="(0, 1)", sharpness="[0, inf)", huber="[0, inf)", class_dropout="[0, 1]")
        if not 0 < self.transition < self.sigma_max:
            raise UserError(
                f"TCM: transition = {self.transition}, sigma_max = {self.sigma_max}; 0 < transition < sigma_max"
            )

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the consistency model's run from its weights, sampled in one step."""
        check_boundary(run.path, run.parameterisation, "TCM")
        if isinstance(run.objective, Denoising):
            raise UserError(f"TCM is a second stage, and {teacher} is a denoiser: distil it by ect first")
        return replace(run, objective=self, teacher=None, init=str(teacher), sampler=self.sampler)

    @property
    def sampler(self) -> Sampler:
        """One step from `sigma_max`; two go by `transition`."""
        return Sampler("renoise", steps=1, grid=Karras(sigma_min=self.transition, sigma_max=self.sigma_max))

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_roles("TCM", net, teacher)
        return {"net": net, "first_stage": frozen_copy(net)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        check_boundary(f.path, f.parameterisation, "TCM")
        at_boundary = batch.noise.uniform("boundary") < self.boundary
        drawn = self.sigma_quantile(batch.noise.uniform("t"))
        sigma = torch.where(at_boundary, torch.full_like(drawn, self.transition), drawn)
        at_boundary, t = batch.to_device(at_boundary), batch.to_device(t_of_sigma(f.path, sigma))
        losses, x0 = self.losses(roles, batch, drop_condition(f, batch, self.class_dropout), t)
        # Divided by expected numbers, not by those drawn: so a sample counts alike in every micro-batch.
        boundary = torch.where(at_boundary, losses, 0.0).mean() / self.boundary
        consistency = torch.where(at_boundary, 0.0, losses).mean() / (1 - self.boundary)
        logs = {"boundary_loss": boundary.detach(), "consistency_loss": consistency.detach(), **output_stats(x0)}
        yield "net", consistency + self.boundary_weight * boundary, logs

    def sigma_quantile(self, u: Tensor) -> Tensor:
        """Return the noise levels [B] of uniform numbers u [B]: the inverse distribution function.

        With ln sigma = mean + w sinh(y), w = std sqrt(dof), the density of y is cosh(y)^-dof: nearly even.
        """
        w = self.std * math.sqrt(self.dof)
        low, high = (math.asinh((math.log(sigma) - self.mean) / w) for sigma in (self.transition, self.sigma_max))
        y = torch.linspace(low, high, 4097, dtype=torch.float64)
        share = torch.cumulative_trapezoid(y.cosh() ** -self.dof, y)
        share = torch.cat([torch.zeros(1, dtype=torch.float64), share / share[-1]])
        k = torch.searchsorted(share, u, right=True).clamp(1, len(y) - 1)
        at = torch.lerp(y[k - 1], y[k], (u - share[k - 1]) / (share[k] - share[k - 1]))
        return (self.mean + w * at.sinh()).exp()

    def losses(self, roles: Roles, batch: Batch, cond: Cond, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each sample [B] at times t [B], and f(x_t, t)."""
        f = roles["net"]
        both = TruncatedConsistency(roles["first_stage"], f, self.transition)
        r = ect_next_time(f.path, t, self.gap, self.sharpness, self.slope)
        return consistency_losses(f, both, batch, cond, t, r, self.huber)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the mean loss at `transition` and at 7 levels above it."""
        sigma = self.sigma_quantile((torch.arange(7).double() + 0.5) / 7)
        sigma = torch.cat([torch.tensor([self.transition]).double(), sigma])
        at = batch.to_device(t_of_sigma(roles["net"].path, sigma))
        return mean_over(at, batch, lambda t: self.losses(roles, batch, batch.cond, t)[0])

"""TCM: a consistency model's second stage, which spends the network on the noisy times alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.path import NoisePath, Prediction
from gen.diffusion.tap import Tap
from gen.distillers.lib.consistency import (
    check_boundary,
    closer,
    frozen,
    level,
    pair_losses,
    same_dropout,
    seen,
    time_of,
)
from gen.distillers.lib.velocity import check_roles
from gen.samplers.grids.karras import Karras
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import Denoising, drop_condition
from gen.training.run import Run, Sampler

__all__ = ["TCM", "Truncated"]


@dataclass(frozen=True, eq=False)
class Truncated:
    """The consistency model of TCM: `net` from level sigma / alpha = `start` on, the frozen `first` stage below it."""

    first: DenoiserLike
    net: DenoiserLike
    start: float

    @property
    def path(self) -> NoisePath:
        return self.net.path

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        late = (level(self.path, t) >= self.start).expand(len(x))
        if bool(late.all()):
            return self.net(x, t, cond, s=s, tap=tap)
        with same_dropout(x):
            early = self.first(x, t, cond, s=s, tap=tap)
        if not bool(late.any()):
            return early
        rows, own = late.reshape(-1, *[1] * (x.ndim - 1)), self.net(x, t, cond, s=s, tap=tap)
        return Prediction(torch.where(rows, own.x0, early.x0), torch.where(rows, own.eps, early.eps))

    def null(self, cond: Cond) -> Cond:
        return self.net.null(cond)


@dataclass(frozen=True)
class TCM:
    """ECT's loss for levels sigma / alpha >= `start` only, the first stage being the target below (Lee et al. 2024).

    The run starts from the weights of a consistency model, by ECT say (Run.init, or the teacher of a distillation);
    their frozen copy is the role "first". A share `boundary` of the samples is put at `start`, where the first stage
    is the target and keeps the second from collapsing; their mean loss counts `weight` beside that of the others, whose
    ln sigma has a Student's t density of `freedom` degrees about `mean` with scale `std`, cut to [start, top]. The pair
    is ECT's, at one fixed gap (`sharpness`, `slope`, `huber`: see there). Below `start` the student is nothing: its
    sampler stays above. The loss says nothing of quality.
    """

    start: float = 1.0
    top: float = 80.0
    freedom: float = 0.01
    mean: float = 0.0
    std: float = 0.2
    boundary: float = 0.25
    weight: float = 0.1
    gap: float = 2**-8
    sharpness: float = 8.0
    slope: float = 1.0
    huber: float = 0.0
    class_dropout: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.start < self.top or not min(self.freedom, self.std) > 0:
            raise UserError(
                f"TCM: start = {self.start}, top = {self.top}, freedom = {self.freedom}, std = {self.std}; "
                "it must be 0 < start < top, and the others positive"
            )
        if not 0 < self.boundary < 1 or not 0 <= self.class_dropout <= 1 or min(self.weight, self.huber) < 0:
            raise UserError(
                f"TCM: boundary = {self.boundary}, class_dropout = {self.class_dropout}, weight = {self.weight}, "
                f"huber = {self.huber}; allowed: (0, 1), [0, 1], >= 0, and >= 0"
            )
        if not 0 < self.gap < 1 or self.sharpness < 0:
            raise UserError(f"TCM: gap = {self.gap}, sharpness = {self.sharpness}; allowed: (0, 1), and >= 0")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The consistency model's run from its weights, sampled in one step."""
        check_boundary(run.path, run.parameterisation, "TCM")
        if isinstance(run.objective, Denoising):
            raise UserError(f"TCM is a second stage, and {teacher} is a denoiser: distil it by ect first")
        return replace(run, objective=self, init=str(teacher), teacher=None, sampler=self.sampler)

    @property
    def sampler(self) -> Sampler:
        """One step from `top`; two go by `start`."""
        return Sampler("renoise", steps=1, grid=Karras(sigma_min=self.start, sigma_max=self.top))

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_roles("TCM", net, teacher)
        return {"net": net, "first": frozen(net)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        check_boundary(f.path, f.parameterisation, "TCM")
        pinned = batch.noise.uniform("boundary") < self.boundary
        drawn = self.level_at(batch.noise.uniform("t"))
        sigma = torch.where(pinned, torch.full_like(drawn, self.start), drawn)
        pinned, t = pinned.to(batch.x.device), time_of(f.path, sigma).to(batch.x.device)
        losses, x0 = self.losses(roles, batch, drop_condition(f, batch, self.class_dropout), t)
        # By expected numbers, not by those drawn: so a sample counts alike in every micro-batch.
        at, beyond = (torch.where(rows, losses, 0.0).mean() for rows in (pinned, ~pinned))
        at, beyond = at / self.boundary, beyond / (1 - self.boundary)
        logs = {"boundary_loss": at.detach(), "consistency_loss": beyond.detach(), **seen(x0)}
        yield "net", beyond + self.weight * at, logs

    def level_at(self, u: Tensor) -> Tensor:
        """The level [B] of uniform numbers u [B]: the inverse distribution function.

        With ln sigma = mean + w sinh(y), w = std sqrt(freedom), the density of y is cosh(y)^-freedom: nearly even.
        """
        w = self.std * math.sqrt(self.freedom)
        low, high = (math.asinh((math.log(sigma) - self.mean) / w) for sigma in (self.start, self.top))
        y = torch.linspace(low, high, 4097, dtype=torch.float64)
        share = torch.cumulative_trapezoid(y.cosh() ** -self.freedom, y)
        share = torch.cat([torch.zeros(1, dtype=torch.float64), share / share[-1]])
        k = torch.searchsorted(share, u, right=True).clamp(1, len(y) - 1)
        where = torch.lerp(y[k - 1], y[k], (u - share[k - 1]) / (share[k] - share[k - 1]))
        return (self.mean + w * where.sinh()).exp()

    def losses(self, roles: Roles, batch: Batch, cond: Cond, t: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each sample [B] at times t [B], and f(x_t, t)."""
        f = roles["net"]
        whole = Truncated(roles["first"], f, self.start)
        r = closer(f.path, t, self.gap, self.sharpness, self.slope)
        return pair_losses(f, whole, batch, cond, t, r, self.huber)[:2]

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The mean loss at `start` and at 7 levels above it."""
        f, n = roles["net"], len(batch.x)
        sigma = torch.cat([torch.tensor([self.start]).double(), self.level_at((torch.arange(7).double() + 0.5) / 7)])
        at = time_of(f.path, sigma).to(batch.x.device)
        return torch.stack([self.losses(roles, batch, batch.cond, t.expand(n))[0].mean() for t in at]).mean()

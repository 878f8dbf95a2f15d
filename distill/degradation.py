"""Degradation: a teacher's score as it learns, step by step, the samples of its own few-step sampler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.times import Natural, Times
from gen.diffusion.weighting import UniformWeighting, Weighting
from gen.distillers.lib.score import check_same_terms, denoising_losses, fold_in, generate
from gen.distillers.lib.teacher import require_teacher
from gen.distillers.lib.times import draw_times, mean_at_fixed_times
from gen.training.distillation import Distiller
from gen.training.objectives import Batch, Roles, Step
from gen.training.run import Run
from gen.training.schedules import Constant

__all__ = ["Degradation"]


@dataclass(frozen=True)
class Degradation(Distiller):
    """The first stage of DisBack (Zhang et al. 2024): denoising of samples that the frozen teacher generates.

    The network begins as the teacher and ends as the score of what a student that begins as the teacher generates. Its
    checkpoints are the way back (gen.distillers.disback).

    Attributes:
        records: number of checkpoints, at least 1.
        every: updates between two of them, at least 1.
        steps, grid: of the teacher's few-step sampler.
        times, weighting: of the denoising loss.
        critic_rate: factor on the learning rate, positive.
    """

    records: int = 4
    every: int = 50
    steps: int = 1
    grid: Grid = part("samplers.grids", default="natural")
    times: Times = part("diffusion.times", default=Natural())
    weighting: Weighting = part("diffusion.weighting", default=UniformWeighting())
    critic_rate: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, records="[1, inf)", every="[1, inf)", steps="[1, inf)", critic_rate="(0, inf)")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run from its weights, without averages, with every checkpoint kept."""
        optim, steps = replace(run.optim, lr=run.optim.lr / 10), self.records * self.every
        return replace(
            run, objective=self, teacher=str(teacher), init=str(teacher), optim=optim, ema=(), schedule=Constant(),
            steps=steps, save_every=self.every, keep=max(2, self.records),
        )  # fmt: skip

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        require_teacher("Degradation", teacher)
        return {"net": net}

    @property
    def rates(self) -> dict[str, float]:
        return {"net": self.critic_rate}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        yield "net", self.losses(roles, batch, draw_times(self.times, batch, "t", roles["net"].path)).mean(), {}

    def losses(self, roles: Roles, batch: Batch, t: Tensor) -> Tensor:
        """Return the denoising loss of a sample of the teacher's for each of the batch, [B], at times t [B]."""
        f, teacher = roles["net"], roles["teacher"]
        check_same_terms(f, teacher)
        y = generate(teacher, batch, fold_in(batch.noise, "student"), self.grid.times(f.path, self.steps))
        return denoising_losses(f, y, batch.normal("eps"), t, batch.cond, self.weighting)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the mean loss at 8 fixed times."""
        return mean_at_fixed_times(self.times, roles["net"].path, batch, lambda t: self.losses(roles, batch, t))

"""Degradation: what becomes of a teacher's score when it learns the samples of its own few-step walk, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.spec import part
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.times import Uniform as AllTimes
from gen.diffusion.weighting import Uniform as AllAlike
from gen.distillers.lib import score
from gen.distillers.lib.teacher import require_teacher
from gen.training.objectives import Batch, Roles, Step
from gen.training.run import Run
from gen.training.schedules import Constant

__all__ = ["Degradation"]


@dataclass(frozen=True)
class Degradation:
    """Denoising of samples that the frozen teacher makes in `steps` steps: DisBack's first stage (Zhang et al. 2024).

    The network begins as the teacher and ends as the score of what a student that begins as the teacher makes. Its
    checkpoints, `records` of them, one after every `every` updates, are the way back (gen.distillers.disback).
    """

    records: int = 4
    every: int = 50
    steps: int = 1
    grid: Any = part("samplers.grids", default="linear")
    times: Any = part("diffusion.times", default=AllTimes())
    weighting: Any = part("diffusion.weighting", default=AllAlike())
    critic_rate: float = 1.0

    def __post_init__(self) -> None:
        score.check_settings(self, records=1, every=1)

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The run that records: no averages, and every checkpoint kept."""
        made = score.student_run(run, teacher, self)
        return replace(
            made,
            sampler=run.sampler,
            ema=(),
            schedule=Constant(),
            steps=self.records * self.every,
            save_every=self.every,
            keep=max(2, self.records),
        )

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        require_teacher("Degradation", teacher)
        return {"net": net}

    @property
    def rates(self) -> dict[str, float]:
        return {"net": self.critic_rate}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        yield "net", self.losses(roles, batch, score.times_of(self.times, batch, "t", roles["net"].path)).mean(), {}

    def losses(self, roles: Roles, batch: Batch, t: Tensor) -> Tensor:
        """The denoising loss of one of the teacher's own samples for each of the batch, [B], at times t [B]."""
        f, teacher = roles["net"], roles["teacher"]
        score.check_pair(f, teacher)
        grid = self.grid.times(f.path, self.steps)
        y = score.generate(teacher, batch, score.named(batch.noise, "student"), grid)
        return score.denoising_losses(f, y, batch.normal("eps"), t, batch.cond, self.weighting)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The mean loss at 8 fixed times."""
        at = self.times.fixed(roles["net"].path).to(batch.x.device)
        return torch.stack([self.losses(roles, batch, t.expand(len(batch.x))).mean() for t in at]).mean()

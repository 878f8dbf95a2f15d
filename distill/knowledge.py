"""Knowledge distillation: one look at the noise, compared with what the teacher made of it in many steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import part
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.distillers.distances.square import Square
from gen.distillers.lib.pairs import noise_of, pairs_of
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import check_state
from gen.training.run import Run, Sampler

__all__ = ["Knowledge"]


@dataclass(frozen=True)
class Knowledge:
    """distance(x0(x_t1), x), x_t1 = sigma(t1) z the sampler's own start, over stored pairs (Luhman & Luhman 2021).

    distance: square is the published one; lpips is what DMD's regression has (Yin et al. 2024). pairs, teacher_sampler,
    store, real: as in gen.distillers.reflow. Only the first step is trained: a one-step student, whatever the path.
    """

    pairs: int = 16_384
    teacher_sampler: Sampler = field(default_factory=lambda: Sampler(steps=16))
    distance: Any = part("distillers.distances", default=Square())
    real: bool = False
    store: str | None = None

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise UserError(f"Knowledge: pairs = {self.pairs}; it must be at least 1")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The run of the student: the teacher's, on its pairs, from its weights."""
        check_state(run.model.build(), "knowledge")
        one = Sampler("euler", steps=1)
        nothing = torch.zeros(1, 1)
        start = one.grid.times(run.path, 1)[0]
        run.parameterisation.solve(run.path, nothing, nothing, start)  # refuses what says nothing of x0
        data = pairs_of(run, teacher, folder, self.pairs, self.teacher_sampler, self.store, self.real)
        return replace(run, objective=self, data=data, teacher=None, init=str(teacher), sampler=one)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        z, cond = noise_of(batch, "Knowledge")
        made = self.made(roles["net"], z, cond)
        logs = {"sample_mean": made.detach().mean(), "sample_std": made.detach().std()}
        yield "net", self.distance(made, batch.x).mean(), logs

    def made(self, f: Denoiser, z: Tensor, cond: Cond) -> Tensor:
        """What one evaluation makes of unit noise z [B, ...]."""
        t = torch.tensor(f.path.t1, dtype=torch.float64, device=z.device)
        return f(f.path.start(z, t), t, cond).x0

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The mean distance on pairs held out."""
        z, cond = noise_of(batch, "Knowledge")
        return self.distance(self.made(roles["net"], z, cond), batch.x).mean()

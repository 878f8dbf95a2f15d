"""Rectified Diffusion: retrain on the teacher's pairs, in the form that it has, until its noise stays along the way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import part
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.times import Uniform
from gen.distillers.distances.huber import Huber
from gen.distillers.lib.pairs import noise_of, pairs_of
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import check_state, drop_condition
from gen.training.run import Run, Sampler

__all__ = ["RectifiedDiffusion"]


@dataclass(frozen=True)
class RectifiedDiffusion:
    """distance(x0(x_t), x) with x_t = alpha x + sigma z of a pair (x, z), on any path and parameterisation.

    What is straightened is the ODE in x / alpha and sigma / alpha: at the optimum eps is z all along, so one step of
    Euler (DDIM) is exact (Wang et al. 2024, section 3). Published: distance huber with c = 0.001, element by element,
    all times alike, pairs of a guided teacher at 25 steps, the text dropped sometimes.

    space: "output" compares what the network itself predicts, for a prediction that tells nothing of x0 at t1 (eps
    where alpha = 0). pairs, teacher_sampler, store, real: as in gen.distillers.reflow. class_dropout: as in denoise.
    """

    pairs: int = 16_384
    teacher_sampler: Sampler = field(default_factory=lambda: Sampler(steps=16))
    times: Any = part("diffusion.times", default=Uniform())
    distance: Any = part("distillers.distances", default=Huber())
    space: Literal["x0", "output"] = "x0"
    class_dropout: float = 0.1
    real: bool = False
    store: str | None = None

    def __post_init__(self) -> None:
        if self.pairs < 1 or not 0 <= self.class_dropout <= 1 or self.space not in ("x0", "output"):
            raise UserError(
                f"RectifiedDiffusion: pairs = {self.pairs}, class_dropout = {self.class_dropout}, space = "
                f"{self.space!r}; allowed: at least 1, from 0 to 1, x0 or output"
            )

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The run of the student: the teacher's, on its pairs, from its weights."""
        check_state(run.model.build(), "rectified_diffusion")
        data = pairs_of(run, teacher, folder, self.pairs, self.teacher_sampler, self.store, self.real)
        return replace(
            run, objective=self, data=data, teacher=None, init=str(teacher), sampler=Sampler("euler", steps=1)
        )

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        t = self.times.at(batch.noise.uniform("t"), f.path).to(batch.x.device)
        z, cond = noise_of(batch, "RectifiedDiffusion")
        cond = drop_condition(f, replace(batch, cond=cond), self.class_dropout)
        yield "net", self.losses(f, batch.x, z, cond, t).mean(), {}

    def losses(self, f: Denoiser, x: Tensor, z: Tensor, cond: Cond, t: Tensor) -> Tensor:
        """The loss of each pair, [B], at times t [B]."""
        x_t = f.path.mix(x, z, t)
        out = f.output(x_t, t, cond)
        away: Tensor
        if self.space == "output":
            away = self.distance(out, f.parameterisation.target(f.path, x, z, t))
        else:
            away = self.distance(f.parameterisation.solve(f.path, x_t, out, t).x0, x)
        return away

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The mean loss at 8 fixed times on pairs held out."""
        f = roles["net"]
        z, cond = noise_of(batch, "RectifiedDiffusion")
        at = self.times.fixed(f.path).to(batch.x.device)
        return torch.stack([self.losses(f, batch.x, z, cond, t.expand(len(z))).mean() for t in at]).mean()

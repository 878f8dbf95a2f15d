"""Phased Rectified Diffusion: the ODE made first-order within each of a few phases, from the teacher's walk in each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import build, part
from gen.diffusion.denoiser import Denoiser, DenoiserLike
from gen.distillers.distances.huber import Huber
from gen.distillers.lib.teacher import guided_teacher, require_teacher
from gen.distillers.progressive import walked
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import check_state
from gen.training.run import Run, Sampler

__all__ = ["Phased"]


@dataclass(frozen=True)
class Phased:
    """distance(student's end of the phase, teacher's), from any time of the phase (Wang et al. 2024, section 3.4).

    The teacher walks from data noised to the phase's top to its bottom, in `substeps` of Euler (DDIM); one x0 and eps
    lead there straight, x_t lies on that way, and the student is to reach the bottom from it in one step. Published: 4
    phases of 10, guidance 3, huber with c = 0.001. grid: the times of all phases * substeps steps. Sampled in as many
    steps as phases. On any path and parameterisation; needs no pairs.
    """

    phases: int = 4
    substeps: int = 10
    grid: Any = part("samplers.grids", default="linear")
    guide: Any = part("samplers.guides", default=None)
    distance: Any = part("distillers.distances", default=Huber())

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", build("samplers.grids", self.grid))
        object.__setattr__(self, "guide", None if self.guide is None else build("samplers.guides", self.guide))
        if self.phases < 1 or self.substeps < 1:
            raise UserError(f"Phased: phases = {self.phases}, substeps = {self.substeps}; both must be at least 1")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The run of the student: the teacher's, from its weights."""
        check_state(run.model.build(), "phased")
        edges = self.grid.times(run.path, self.phases * self.substeps)[:: self.substeps].tolist()
        sampler = Sampler("euler", steps=self.phases, grid=edges)
        return replace(run, objective=self, teacher=str(teacher), init=str(teacher), sampler=sampler)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        require_teacher("Phased", teacher)
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        yield "net", self.losses(roles, batch).mean(), {}

    def losses(self, roles: Roles, batch: Batch) -> Tensor:
        """The loss of each sample, [B], in a phase and at a time of it that its noise draws."""
        f: Denoiser = roles["net"]
        path = f.path
        times = self.grid.times(path, self.phases * self.substeps).to(batch.x.device)
        taught = guided_teacher(roles["teacher"], path, self.guide, times)
        top = batch.noise.integers("phase", self.phases).to(batch.x.device) * self.substeps  # [B]
        high, low = times[top], times[top + self.substeps]
        x_s = path.mix(batch.x, batch.normal("eps"), high)
        way = walked(taught, x_s, [times[top + k] for k in range(self.substeps + 1)], batch.cond)
        t = high - (high - low) * batch.noise.uniform("t").to(high)  # in (low, high]
        made = f(path.mix(*way, t), t, batch.cond)
        return self.distance(path.mix(*made, low), path.mix(*way, low))

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The mean loss on held-out data."""
        return self.losses(roles, batch).mean()

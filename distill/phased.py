"""Phased Rectified Diffusion: the ODE made first-order within each of a few phases, from the teacher's trajectories."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid, Guide
from gen.diffusion.denoiser import Denoiser, DenoiserLike
from gen.distillers.distances import Distance
from gen.distillers.distances.huber import Huber
from gen.distillers.lib.teacher import guided_teacher, require_teacher
from gen.distillers.lib.trajectory import euler_chord
from gen.training.distillation import Distiller
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import check_state
from gen.training.run import Run, Sampler

__all__ = ["Phased"]


@dataclass(frozen=True)
class Phased(Distiller):
    """Phased Rectified Diffusion (Wang et al. 2024, section 3.4).

    The loss is the distance of the student's end of a phase to the teacher's, from any time of the phase. From data
    noised to the phase's first time the teacher takes Euler's steps (DDIM) to its last; one x0 and eps lead there
    straight, x_t lies on that line, and the student is to reach the end from it in one step. Sampled in as many steps
    as phases. On any path and parameterisation; needs no pairs.

    Attributes:
        phases: how many, at least 1; the paper's.
        substeps: the teacher's steps in each, at least 1; the paper's.
        grid: the times of all phases * substeps steps.
        guide: on the teacher; its `steps` are parts of all phases. None for none; scale 3 in the paper.
        distance: of gen.distillers.distances; the paper's.
    """

    phases: int = 4
    substeps: int = 10
    grid: Grid = part("samplers.grids", default="natural")
    guide: Guide | None = part("samplers.guides", default=None)
    distance: Distance = part("distillers.distances", default=Huber())

    def __post_init__(self) -> None:
        check_fields(self, phases="[1, inf)", substeps="[1, inf)")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run from its weights, sampled in one step a phase."""
        check_state(run.model.build(), "Phased")
        edges = self.grid.times(run.path, self.phases * self.substeps)[:: self.substeps].tolist()
        sampler = Sampler("euler", steps=self.phases, grid=edges)
        return replace(run, objective=self, teacher=str(teacher), init=str(teacher), sampler=sampler)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        require_teacher("Phased", teacher)
        return {"net": net}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        yield "net", self.losses(roles, batch).mean(), {}

    def losses(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the loss of each sample, [B], in a phase and at a time of it that its noise draws."""
        f: Denoiser = roles["net"]
        path = f.path
        times = batch.to_device(self.grid.times(path, self.phases * self.substeps))
        teacher = guided_teacher(roles["teacher"], path, self.guide, times)
        first = batch.to_device(batch.noise.integers("phase", self.phases)) * self.substeps  # [B]
        high, low = times[first], times[first + self.substeps]
        x = path.mix(batch.x, batch.normal("eps"), high)
        line = euler_chord(teacher, x, [times[first + k] for k in range(self.substeps + 1)], batch.cond)
        t = high - (high - low) * batch.noise.uniform("t").to(high)  # in (low, high]
        pred = f(path.mix(*line, t), t, batch.cond)
        return self.distance(path.mix(*pred, low), path.mix(*line, low))

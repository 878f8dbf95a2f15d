"""Progressive distillation: one step of the student is two of its teacher, then the student becomes the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid, Guide
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.net import unwrap
from gen.diffusion.tap import Tap
from gen.diffusion.weighting import UniformWeighting, Weighting
from gen.distillers.lib.networks import ema_update, frozen_copy
from gen.distillers.lib.teacher import guided_teacher
from gen.distillers.lib.trajectory import euler_chord
from gen.training.distillation import Distiller
from gen.training.ema import Classic
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import check_state
from gen.training.run import Run, Sampler
from gen.training.schedules import WSDS

__all__ = ["Progressive"]


class StageTeacher(nn.Module):
    """The network at the end of the last stage, frozen and in evaluation mode, and the number of updates so far.

    As a role without trainable parameters it is state, saved and resumed with the rest.
    """

    updates: Tensor

    def __init__(self, net: nn.Module):
        super().__init__()
        self.inner = frozen_copy(net)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        return self.inner(x, t, cond, s=s, tap=tap)

    def null(self, cond: Cond) -> Cond:
        return unwrap(self.inner).null(cond)

    def train(self, mode: bool = True) -> StageTeacher:
        return super().train(False)


@dataclass(frozen=True)
class Progressive(Distiller):
    """Progressive distillation (Salimans & Ho 2022, algorithm 2), with guidance (Meng et al. 2023).

    The loss is weight(t) |net(x_t, t) - target|^2, the target where two DDIM steps of the teacher lead: that of the one
    x0 and eps that lead there in one step. The student's number of steps is halved from stage to stage, in one run; at
    the end of each its weights become the teacher's, the role "stage_teacher".

    Attributes:
        start_steps, end_steps: steps of the student in the first and the last stage, a power of 2 apart.
        stage_updates: updates of a stage, at least 1.
        last_stage_updates: of the last one; None for as many.
        first_stride: teacher steps that one student step stands for in the first stage, at least 2; the paper's.
        grid: the times of all start_steps * first_stride teacher steps; every later stage steps on every second of its
            teacher's.
        guide: on the first teacher only, whose students have the guidance in them (Meng et al. 2023); its `steps` are
            parts of the grid. None for none.
        weighting: on the error of the network's own output; uniform is the paper's SNR + 1 for v.
    """

    start_steps: int = 16
    end_steps: int = 1
    stage_updates: int = 400
    last_stage_updates: int | None = None
    first_stride: int = 2
    grid: Grid = part("samplers.grids", default="natural")
    guide: Guide | None = part("samplers.guides", default=None)
    weighting: Weighting = part("diffusion.weighting", default=UniformWeighting())

    def __post_init__(self) -> None:
        check_fields(self, end_steps="[1, inf)", stage_updates="[1, inf)", last_stage_updates="[1, inf)")
        check_fields(self, first_stride="[2, inf)")
        ratio = self.start_steps // self.end_steps
        if self.end_steps * ratio != self.start_steps or ratio & (ratio - 1):
            raise UserError(
                f"Progressive: start_steps = {self.start_steps}, end_steps = {self.end_steps}; the first must be the "
                "second times a power of 2"
            )

    @property
    def stages(self) -> int:
        return (self.start_steps // self.end_steps).bit_length()

    @property
    def total_updates(self) -> int:
        """The updates of all stages."""
        return self.stage_updates * (self.stages - 1) + (self.last_stage_updates or self.stage_updates)

    def stage(self, update: int) -> int:
        """Return the stage, from 0, that an update belongs to; the last one goes on."""
        return min(update // self.stage_updates, self.stages - 1)

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run from its weights, its learning rate falling to 0 in every stage."""
        check_state(run.model.build(), "Progressive")
        stride = self.start_steps * self.first_stride // self.end_steps
        times = self.grid.times(run.path, self.start_steps * self.first_stride)[::stride].tolist()
        decay = 1 - 10 / max(self.last_stage_updates or self.stage_updates, 20)  # an average of the last stage alone
        return replace(
            run,
            ema=tuple(replace(a, decay=min(a.decay, decay)) if isinstance(a, Classic) else a for a in run.ema),
            objective=self,
            teacher=str(teacher),
            init=str(teacher),
            steps=self.total_updates,
            schedule=WSDS(
                ends=tuple(self.stage_updates * k for k in range(1, self.stages)), decay=1.0, floor=0.0, shape="linear"
            ),
            sampler=Sampler("euler", steps=self.end_steps, grid=times),
        )

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        return {"net": net, "stage_teacher": StageTeacher(net)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        stage = self.stage(batch.step)
        logs = {"stage": torch.tensor(float(stage)), "student_steps": torch.tensor(float(self.start_steps >> stage))}
        yield "net", self.losses(roles, batch).mean(), logs

    def losses(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the weighted loss of each sample, [B], at a step of the stage's own grid that its noise draws."""
        f: Denoiser = roles["net"]
        stage = self.stage(batch.step)
        times = batch.to_device(self.grid.times(f.path, self.start_steps * self.first_stride))
        stride = self.first_stride << stage  # of one student step, in the grid of the first teacher
        i = batch.to_device(batch.noise.integers("step", self.start_steps >> stage)) * stride  # [B]
        x_t = f.path.mix(batch.x, batch.normal("eps"), times[i])
        teacher = roles["teacher"] if stage == 0 and "teacher" in roles else roles["stage_teacher"]
        if stage == 0:
            teacher = guided_teacher(teacher, f.path, self.guide, times)
        substeps = self.first_stride if stage == 0 else 2
        goal = euler_chord(teacher, x_t, [times[i + stride * k // substeps] for k in range(substeps + 1)], batch.cond)
        out = f.output(x_t, times[i], batch.cond)
        error = (out - f.parameterisation.target(f.path, *goal, times[i])).flatten(1) ** 2
        return error.mean(1) * self.weighting.weight(f.path, f.parameterisation, times[i]).to(error)

    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        """Make the student the teacher at the end of a stage."""
        teacher: StageTeacher = roles["stage_teacher"].net
        teacher.updates += 1
        ended, rest = divmod(int(teacher.updates), self.stage_updates)
        if rest == 0 and ended < self.stages:
            ema_update(teacher.inner, roles["net"].net, 0.0)

"""Progressive distillation: one step of the student is two of its teacher, then the student becomes the teacher."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import build, part
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.path import Prediction
from gen.diffusion.weighting import Uniform
from gen.diffusion.worlds import chord
from gen.distillers.lib.memory import Earlier
from gen.distillers.lib.teacher import guided_teacher
from gen.training.ema import Classic
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import check_state
from gen.training.run import Run, Sampler
from gen.training.schedules import WSDS

__all__ = ["Progressive"]


@dataclass(frozen=True)
class Progressive:
    """weight(t) |net(x_t, t) - target|^2, its target the one x0 and eps that lead where two DDIM steps lead
    (Salimans & Ho 2022, algorithm 2), from `start` student steps by halves to `end`, in one run.

    A stage lasts `updates`, or `last` for the final one; then the student's weights become the teacher's, the role
    "earlier". first: how many teacher steps one student step stands for in the first stage. grid: the times of all
    start * first of those; every later stage steps on every second of its teacher's. guide: on the first teacher only,
    whose students have the guidance in them (Meng et al. 2023). weighting: on the error of the network's own output;
    uniform is the paper's SNR + 1 for v.
    """

    start: int = 16
    end: int = 1
    updates: int = 400
    last: int | None = None
    first: int = 2
    grid: Any = part("samplers.grids", default="linear")
    guide: Any = part("samplers.guides", default=None)
    weighting: Any = part("diffusion.weighting", default=Uniform())

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", build("samplers.grids", self.grid))
        object.__setattr__(self, "guide", None if self.guide is None else build("samplers.guides", self.guide))
        ratio = self.start // self.end if self.end > 0 else 0
        if self.end < 1 or self.end * ratio != self.start or ratio & (ratio - 1):
            raise UserError(
                f"Progressive: start = {self.start}, end = {self.end}; start must be end times a power of 2"
            )
        if self.updates < 1 or self.first < 2 or (self.last is not None and self.last < 1):
            raise UserError(
                f"Progressive: updates = {self.updates}, last = {self.last}, first = {self.first}; "
                "allowed: at least 1, 1 and 2"
            )

    @property
    def stages(self) -> int:
        return (self.start // self.end).bit_length()

    @property
    def total(self) -> int:
        """The updates of all stages."""
        return self.updates * (self.stages - 1) + (self.last or self.updates)

    def stage(self, update: int) -> int:
        """The stage, from 0, that an update belongs to; the last one goes on."""
        return min(update // self.updates, self.stages - 1)

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The run of the student: the teacher's, from its weights, its rate falling to nothing in every stage."""
        check_state(run.model.build(), "progressive")
        ends = tuple(self.updates * k for k in range(1, self.stages))
        stride = self.start * self.first // self.end
        times = self.grid.times(run.path, self.start * self.first)[::stride].tolist()
        forget = 1 - 10 / max(self.last or self.updates, 20)  # an average that knows the last stage alone
        ema = tuple(replace(a, decay=min(a.decay, forget)) if isinstance(a, Classic) else a for a in run.ema)
        return replace(
            run,
            ema=ema,
            objective=self,
            teacher=str(teacher),
            init=str(teacher),
            steps=self.total,
            schedule=WSDS(ends=ends, decay=1.0, floor=0.0, shape="linear"),
            sampler=Sampler("euler", steps=self.end, grid=times),
        )

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        return {"net": net, "earlier": Earlier(net)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        stage = self.stage(batch.step)
        loss = self.losses(roles, batch).mean()
        yield (
            "net",
            loss,
            {"stage": torch.tensor(float(stage)), "student_steps": torch.tensor(float(self.start >> stage))},
        )

    def losses(self, roles: Roles, batch: Batch) -> Tensor:
        """The weighted loss of each sample, [B], at a step of the stage's own grid that its noise draws."""
        f: Denoiser = roles["net"]
        stage = self.stage(batch.step)
        times = self.grid.times(f.path, self.start * self.first).to(batch.x.device)
        stride = self.first << stage  # of one student step, in the finest grid
        top = batch.noise.integers("step", self.start >> stage).to(batch.x.device) * stride  # [B]
        x_t = f.path.mix(batch.x, batch.normal("eps"), times[top])
        taught = roles["teacher"] if stage == 0 and "teacher" in roles else roles["earlier"]
        if stage == 0:
            taught = guided_teacher(taught, f.path, self.guide, times)
        parts = self.first if stage == 0 else 2
        goal = walked(taught, x_t, [times[top + stride * k // parts] for k in range(parts + 1)], batch.cond)
        out = f.output(x_t, times[top], batch.cond)
        error = (out - f.parameterisation.target(f.path, *goal, times[top])).flatten(1) ** 2
        weight: Tensor = self.weighting.weight(f.path, f.parameterisation, times[top])
        return error.mean(1) * weight.to(error)

    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        """At the end of a stage the student becomes the teacher."""
        earlier = roles["earlier"].net
        earlier.updates += 1
        ended, rest = divmod(int(earlier.updates), self.updates)
        if rest == 0 and ended < self.stages:
            earlier.take(roles["net"].net)

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The mean loss of the stage on held-out data."""
        return self.losses(roles, batch).mean()


@torch.no_grad()
def walked(f: DenoiserLike, x: Tensor, times: list[Tensor], cond: Cond) -> Prediction:
    """The constant x0 and eps that lead from x [B, ...] at times[0] [B] where Euler's steps along `times` lead."""
    y = x
    for t, s in itertools.pairwise(times):
        y = f.path.mix(*f(y, t, cond), s)
    return chord(f.path, x, y, times[0], times[-1])

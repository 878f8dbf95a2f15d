"""The teacher of a distiller: that there is one, on the student's path, and under a guide that can act there."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.data import DataSource
from gen.diffusion.contracts import Guide
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.path import NoisePath
from gen.training.run import Run

__all__ = ["guided_teacher", "require_data", "require_teacher"]


def require_teacher(owner: str, teacher: DenoiserLike | None) -> DenoiserLike:
    """Return the teacher; raise UserError where there is none.

    Args:
        owner: name of the distiller, for the message.
        teacher: the run's teacher, or None.
    """
    if teacher is None:
        raise UserError(f"{owner} needs a teacher: gen distill METHOD --teacher FOLDER, or the run's teacher")
    return teacher


def require_data(owner: str, run: Run) -> DataSource:
    """Return the data of a teacher's run; raise UserError for an imported model, which has none.

    Args:
        owner: name of what needs them, for the message.
        run: the teacher's.
    """
    if run.data is None:
        raise UserError(f"{owner} needs the data of the teacher's run, and it names none: was it imported?")
    return run.data


def guided_teacher(
    teacher: DenoiserLike, path: NoisePath, guide: Guide | None, grid: Tensor | None = None
) -> DenoiserLike:
    """Return the teacher under a guide, for evaluations at single times.

    Args:
        teacher: the denoiser that a student learns from.
        path: the student's path, on which the teacher must be.
        guide: of gen.samplers.guides; None for the teacher as it is.
        grid: falling times [N + 1] of the teacher's own sampling loop, in which a guide's `steps` are counted; None
            where there is no loop.

    Raises:
        UserError: for a teacher on another path, and for options of the guide that would have no effect here, or
            another one than in sampling: part of the steps where there are none, momentum, left-out first steps.
    """
    if teacher.path != path:
        raise UserError(f"the teacher is on {teacher.path}, the student on {path}: both must be on the same path")
    if guide is None:
        return teacher
    ignored = [name for name in guide.loop_options if grid is None or name != "steps"]
    if ignored:
        given = ", ".join(f"{name} = {getattr(guide, name)}" for name in ignored)
        raise UserError(
            f"{type(guide).__name__}: {given} needs a sampling loop, and a teacher is evaluated at single times; leave "
            "it out (momentum, zero_steps or skip_scale = 0, num_steps given), and say where to guide by interval, the "
            "noise levels"
        )
    return guide(teacher, torch.tensor([path.t1, 0.0], dtype=torch.float64) if grid is None else grid)

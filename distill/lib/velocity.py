"""The velocity that flow maps and sCM regress on, of the pair at hand or of a teacher, and straight coordinates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.contracts import Guide
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.path import NoisePath, Prediction
from gen.distillers.lib.teacher import guided_teacher
from gen.training.distillation import Distiller
from gen.training.objectives import Batch, Roles
from gen.training.objectives.denoise import check_state
from gen.training.run import Run, Sampler

__all__ = ["VelocitySource", "check_roles", "flow_map_student", "tau_of_t", "velocity_in_tau", "velocity_target"]

VelocitySource = Literal["data", "teacher"]


def check_roles(
    owner: str,
    net: nn.Module,
    teacher: DenoiserLike | None,
    velocity: VelocitySource = "data",
    guide: Guide | None = None,
) -> None:
    """Raise UserError for a network of more than images, and for a velocity, or a guide, of a teacher that is missing.

    Args:
        owner: name of the distiller, for the messages.
        net: the student.
        teacher: the run's teacher, or None.
        velocity, guide: the distiller's fields.
    """
    if hasattr(net, "spec"):
        check_state(net, owner)
    if velocity == "teacher" and teacher is None:
        raise UserError(f"{owner}: velocity = 'teacher' needs a teacher; give one, or velocity = 'data'")
    if velocity == "data" and guide is not None:
        raise UserError(f"{owner}: guide acts on a teacher, and velocity = 'data' has none; set velocity = 'teacher'")


def flow_map_student(run: Run, teacher: Path, objective: Distiller, velocity: VelocitySource) -> Run:
    """Return the teacher's run with a network that takes the interval t - s as well, from its weights.

    One jump samples it.

    Args:
        run: the teacher's.
        teacher: its folder.
        objective: the distiller.
        velocity: "teacher" keeps the teacher for the training.
    """
    if hasattr(run.model, "found"):  # no spec that another model wraps
        raise UserError(f"{type(objective).__name__} trains a network that takes the time to jump to, too, and this "
                        "one does not: take consistency, ect, scm or dmd2")  # fmt: skip
    flow_map = {"name": "flow_map", "inner": run.model, "tell": "interval"}
    return replace(
        run,
        model=run.model if hasattr(run.model, "tell") else flow_map,
        objective=objective,
        teacher=str(teacher) if velocity == "teacher" else None,
        init=str(teacher),
        sampler=Sampler("jump", steps=1),
    )


@torch.no_grad()
def velocity_target(
    roles: Roles,
    batch: Batch,
    x: Tensor,
    eps: Tensor,
    t: Tensor,
    cond: Cond,
    velocity: VelocitySource,
    guide: Guide | None,
) -> Prediction:
    """Return x0 and eps whose velocity alpha' x0 + sigma' eps is the regression target.

    The pair's velocity is an unbiased draw of the marginal one; a teacher gives its mean, without the variance.

    Args:
        roles: of the objective.
        batch: the data.
        x: x_t, mixed from batch.x and eps, [B, ...].
        eps: noise [B, ...].
        t: times [B].
        cond: the condition of the teacher.
        velocity: "data" for the pair itself, "teacher" for the teacher's prediction.
        guide: on the teacher.
    """
    if velocity == "data":
        return Prediction(batch.x, eps)
    return guided_teacher(roles["teacher"], roles["net"].path, guide)(x, t, cond)


def tau_of_t(path: NoisePath, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return tau = sigma / (alpha + sigma) and d tau / dt: with y = x / (alpha + sigma), a path is Flow in time tau.

    There y = (1 - tau) x0 + tau eps and dy / d tau = eps - x0, so straight lines and average velocities are the same
    thing on all paths, and are those of the papers on Flow itself, where tau = t and y = x.

    Args:
        path: the noise path.
        t: times [B].
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    total = alpha + sigma
    return sigma / total, (path.dsigma(t) * alpha - path.dalpha(t) * sigma) / total**2


def velocity_in_tau(pred: Prediction) -> Tensor:
    """Return eps - x0, the velocity dy / d tau of a prediction, [B, ...].

    Args:
        pred: x0 and eps.
    """
    return pred.eps - pred.x0

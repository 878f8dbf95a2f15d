"""The velocity a flow map is trained by, of the pair at hand or of a teacher, and straight coordinates."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.path import NoisePath, Prediction
from gen.distillers.lib.teacher import guided_teacher
from gen.training.objectives import Batch, Roles
from gen.training.objectives.denoise import check_state

__all__ = ["Source", "along", "check_roles", "flow_time", "known"]

Source = Literal["data", "teacher"]


def check_roles(
    owner: str, net: nn.Module, teacher: DenoiserLike | None, source: Source = "data", guide: Any = None
) -> None:
    """Raises UserError for a network that is no picture's, and for velocities, or a guide, of no teacher."""
    if hasattr(net, "spec"):
        check_state(net, owner)
    if source == "teacher" and teacher is None:
        raise UserError(f"{owner}: velocity = 'teacher' needs a teacher; give one, or velocity = 'data'")
    if source == "data" and guide is not None:
        raise UserError(
            f"{owner}: a guide acts on a teacher, and velocity = 'data' asks none; set velocity = 'teacher'"
        )


@torch.no_grad()
def known(roles: Roles, batch: Batch, x: Tensor, eps: Tensor, t: Tensor, cond: Cond, source: Source, guide: Any) -> Any:
    """x0 and eps whose velocity x_t has: those that x [B, ...] was mixed from, or what the (guided) teacher expects.

    The pair's velocity is an unbiased draw of the marginal one; a teacher gives its mean, without the variance.
    """
    if source == "data":
        return Prediction(batch.x, eps)
    return guided_teacher(roles["teacher"], roles["net"].path, guide)(x, t, cond)


def flow_time(path: NoisePath, t: Tensor) -> tuple[Tensor, Tensor]:
    """tau = sigma / (alpha + sigma) and d tau / dt: the time in which, with y = x / (alpha + sigma), a path is Flow.

    There y = (1 - tau) x0 + tau eps and dy / d tau = eps - x0, so straight lines and average velocities are the same
    thing on all paths, and are those of the papers on Flow itself, where tau = t and y = x.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    whole = alpha + sigma
    return sigma / whole, (path.dsigma(t) * alpha - path.dalpha(t) * sigma) / whole**2


def along(pred: Prediction) -> Tensor:
    """eps - x0, the velocity dy / d tau of a prediction."""
    return pred.eps - pred.x0

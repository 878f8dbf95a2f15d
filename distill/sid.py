"""SiD: a one-step student by the Fisher divergence, with gradients through both scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gen.diffusion.denoiser import Cond, Denoiser
from gen.distillers.lib.networks import requires_grad_frozen
from gen.distillers.lib.score import (
    ScoreDistillation,
    backward_simulate,
    check_same_terms,
    fold_in,
    generate,
    sample_stats,
)
from gen.distillers.lib.teacher import guided_teacher
from gen.distillers.lib.times import draw_times
from gen.training.objectives import Batch, Roles, Step

__all__ = ["SiD"]


@dataclass(frozen=True)
class SiD(ScoreDistillation):
    """Score identity distillation, SiD (Zhou et al. 2024), which needs no data.

    The loss is E w (real - fake) . ((real - y) - alpha (real - fake)) on samples y (eq. 23). real and fake are both
    denoisers' x0 at x_t, and the gradient goes through both to y, as well as through y itself. With an exact fake score
    the loss is (1 - alpha) E|real - fake|^2, and its gradient, the fake score held fixed, is half the true one of
    E|real - fake|^2 at alpha = 1/2; every other alpha is biased, unless student and teacher differ in their mean alone.
    With the paper's best alpha the loss is mostly negative: it is no signal of quality.

    Each step is critic_steps updates of the fake score, then one of the student; means are over elements where the
    authors sum. Theirs are EDM's times and weighting, the student begins at sigma 2.5 (a grid of {"name": "linear",
    "start": 2.5 / 80} on EDM's path), and the student's Adam has beta1 = 0.

    Attributes:
        critic_steps: see ScoreDistillation; the paper's.
        alpha: the paper's best.
        weight: "error" for w = 1 / max(mean|y - real|, 1e-5), as published, "none" for 1.
    """

    critic_steps: int = 1
    alpha: float = 1.2
    weight: Literal["error", "none"] = "error"

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        check_same_terms(f, roles["teacher"])
        grid = self.grid.times(f.path, self.steps)
        first = generate(f, batch, fold_in(batch.noise, "critic.0"), grid)
        before = loss = self.denoising_loss(roles, batch, first, "critic.0")
        yield "fake", loss, {"fake_denoising": loss}
        for j in range(1, self.critic_steps):
            y = generate(f, batch, fold_in(batch.noise, f"critic.{j}"), grid)
            loss = self.denoising_loss(roles, batch, y, f"critic.{j}")
            yield "fake", loss, {"fake_denoising": loss}
        with torch.no_grad():  # how far the loss falls in a step is how far the fake score lagged
            lag = before.detach() - self.denoising_loss(roles, batch, first, "critic.0")
        y = f(*backward_simulate(f, batch, fold_in(batch.noise, "student"), grid), batch.cond).x0
        t = draw_times(self.times, batch, "match.t", f.path)
        losses, logs = self.losses(roles, y, batch.normal("match.eps"), t, batch.cond)
        yield "net", losses.mean(), {"fake_lag": lag, **logs}

    def losses(self, roles: Roles, y: Tensor, eps: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of each sample, [B], at times t [B], and logs."""
        path, score = roles["net"].path, roles["fake"]
        x = path.mix(y, eps, t)
        with requires_grad_frozen(*([score.net] if isinstance(score, Denoiser) else [])):
            fake = score(x, t, cond).x0
            real = guided_teacher(roles["teacher"], path, self.guide)(x, t, cond).x0
        gap = real - fake
        losses = (gap * ((real - y) - self.alpha * gap)).flatten(1).mean(1)
        if self.weight == "error":
            losses = losses / (y - real).detach().abs().flatten(1).mean(1).clamp(min=1e-5)
        return losses, sample_stats(y.detach(), fake.detach(), real.detach())

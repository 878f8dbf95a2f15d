"""SiD: a one-step student by the Fisher divergence, with gradients through both scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.spec import part
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.times import Uniform as AllTimes
from gen.diffusion.weighting import Uniform as AllAlike
from gen.distillers.lib import score
from gen.distillers.lib.teacher import guided_teacher
from gen.training.objectives import Batch, Roles, Step
from gen.training.run import Run

__all__ = ["SiD"]


@dataclass(frozen=True)
class SiD:
    """E w (real - fake) . ((real - y) - alpha (real - fake)) on samples y, no data needed (Zhou et al. 2024, eq. 23).

    real and fake are both denoisers' x0 at x_t, and the gradient goes through both to y, as well as through y itself.
    With an exact fake score the loss is (1 - alpha) E|real - fake|^2, and its gradient, the fake score held fixed, is
    half the true one of E|real - fake|^2 at alpha = 1/2; every other alpha is biased, unless student and teacher differ
    in their mean alone. The paper's best is 1.2, with which the loss is mostly negative: it is no signal of quality.

    w = 1 / max(mean|y - real|, 1e-5) for weight = "error", 1 for "none"; means over elements where the authors sum.
    Each step is critic_steps updates of the fake score, then one of the student. times: where the scores are compared.
    critic_times, weighting: of the fake score's denoising loss. Theirs are EDM's, the student begins at sigma 2.5
    (a grid of {"name": "linear", "start": 2.5 / 80} on EDM's path), and the student's Adam has beta1 = 0.
    """

    alpha: float = 1.2
    steps: int = 1
    grid: Any = part("samplers.grids", default="linear")
    times: Any = part("diffusion.times", default=AllTimes(0.02, 0.98))
    critic_steps: int = 1
    critic_times: Any = part("diffusion.times", default=AllTimes())
    weighting: Any = part("diffusion.weighting", default=AllAlike())
    critic_rate: float = 1.0
    guide: Any = part("samplers.guides", default=None)
    weight: Literal["error", "none"] = "error"

    def __post_init__(self) -> None:
        score.check_settings(self, critic_steps=1)

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The run of the student: the teacher's, from its weights."""
        return score.student_run(run, teacher, self)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        return {"net": net, "fake": score.fake_score(net, teacher, "SiD")}

    @property
    def rates(self) -> dict[str, float]:
        return {"fake": self.critic_rate}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f, fake = roles["net"], roles["fake"]
        score.check_pair(f, roles["teacher"])
        grid = self.grid.times(f.path, self.steps)
        first: Any = None
        for j in range(self.critic_steps):
            name = f"critic.{j}"
            y = score.generate(f, batch, score.named(batch.noise, name), grid)
            t, eps = score.times_of(self.critic_times, batch, f"{name}.t", f.path), batch.normal(f"{name}.eps")
            again = partial(score.denoising_losses, fake, y, eps, t, batch.cond, self.weighting)
            loss = again().mean()
            first = first or (loss.detach(), again)
            yield "fake", loss, {"fake_denoising": loss}
        before, again = first
        with torch.no_grad():
            lag = before - again().mean()
        y = f(*score.rung(f, batch, score.named(batch.noise, "student"), grid), batch.cond).x0
        t, eps = score.times_of(self.times, batch, "match.t", f.path), batch.normal("match.eps")
        losses, logs = self.losses(roles, y, eps, t, batch.cond)
        yield "net", losses.mean(), {"fake_lag": lag, **logs}

    def losses(self, roles: Roles, y: Tensor, eps: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each sample, [B], at times t [B], and what to log."""
        x = roles["net"].path.mix(y, eps, t)
        net: Any = getattr(roles["fake"], "net", None)
        with score.frozen(*([] if net is None else [net])):
            fake = roles["fake"](x, t, cond).x0
            real = guided_teacher(roles["teacher"], roles["net"].path, self.guide)(x, t, cond).x0
        gap = real - fake
        losses = (gap * ((real - y) - self.alpha * gap)).flatten(1).mean(1)
        if self.weight == "error":
            losses = losses / (y - real).detach().abs().flatten(1).mean(1).clamp(min=1e-5)
        return losses, score.watched(*(z.detach() for z in (y, fake, real)))

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The energy distance between the student's samples and data held out."""
        return score.validation(roles["net"], batch, self.grid, self.steps)

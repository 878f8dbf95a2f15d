"""DMD2: a few-step student whose samples' score, learnt beside it, is drawn to the teacher's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import part
from gen.diffusion.denoiser import Denoiser, DenoiserLike
from gen.diffusion.times import Uniform as AllTimes
from gen.diffusion.weighting import Uniform as AllAlike
from gen.distillers.lib import critic, score
from gen.distillers.lib.score import Scale
from gen.distillers.lib.teacher import guided_teacher
from gen.training.objectives import Batch, Roles, Step
from gen.training.run import Run

__all__ = ["DMD2"]


@dataclass(frozen=True)
class DMD2:
    """Reverse KL between student and teacher at all noise levels, by the difference of scores (Yin et al. 2024).

    Each step is one update of the student and then critic_steps of the fake score, the first of them on the samples
    that the student was just trained on, as in the authors' loop. The loss is the mean over elements of
    1/2 (y - stop(y - g))^2, g = (fake - real) / mean|y - real|: it is no signal of quality.

    steps, grid: how the student is sampled; with more than one step it is trained on its own walk. times: where the
    scores are compared (the middle 96 % of EDM's grid there). critic_times, weighting: of the fake score's denoising
    loss; EDM's weighting is what is published. guide: the teacher's guidance.
    scale: "kl" takes the gradient of KL itself, alpha^2 / sigma^2 (fake - real), in place of g: for data of few
    numbers, where a sample's mean error may be next to 0 and g anything.
    gan_weight, disc_weight: of the adversarial terms, 0.003 and 0.01 there, on the fake score's features at `sites`,
    which learns them too; 0 and 0 leave them out. critic_rate: on the learning rate, for the fake score and the head.
    """

    steps: int = 1
    grid: Any = part("samplers.grids", default="linear")
    times: Any = part("diffusion.times", default=AllTimes(0.02, 0.98))
    critic_steps: int = 5
    critic_times: Any = part("diffusion.times", default=AllTimes())
    weighting: Any = part("diffusion.weighting", default=AllAlike())
    critic_rate: float = 1.0
    guide: Any = part("samplers.guides", default=None)
    scale: Scale = "error"
    gan_weight: float = 0.0
    disc_weight: float = 0.0
    sites: tuple[str, ...] = ("trunk",)
    hidden: int = 128

    def __post_init__(self) -> None:
        score.check_settings(self, critic_steps=1)
        if (self.gan_weight > 0) != (self.disc_weight > 0) or min(self.gan_weight, self.disc_weight) < 0:
            raise UserError(
                f"DMD2: gan_weight = {self.gan_weight}, disc_weight = {self.disc_weight}; both positive, or both 0"
            )

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The run of the student: the teacher's, from its weights."""
        return score.student_run(run, teacher, self)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        roles = {"net": net, "fake": score.fake_score(net, teacher, "DMD2")}
        return roles | ({"disc": critic.head_for(roles["fake"], self.sites, self.hidden)} if self.gan_weight else {})

    @property
    def rates(self) -> dict[str, float]:
        return {"fake": self.critic_rate, "disc": self.critic_rate}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        score.check_pair(f, roles["teacher"])
        grid, noise = self.grid.times(f.path, self.steps), score.named(batch.noise, "student")
        y = f(*score.rung(f, batch, noise, grid), batch.cond).x0
        loss, logs = self.match(roles, batch, y)
        if self.gan_weight:
            loss = loss + self.gan_weight * self.fooling(roles, batch, y).mean()
        yield "net", loss, logs
        y = first = y.detach()
        before = self.lag(roles, batch, first)
        for j in range(self.critic_steps):
            name = f"critic.{j}"
            if j:
                y = score.generate(f, batch, score.named(batch.noise, name), grid)
            loss, logs = self.learn(roles, batch, y, name)
            if 0 < j == self.critic_steps - 1:
                logs |= {"fake_lag": before - self.lag(roles, batch, first)}
            yield ("fake", "disc") if self.gan_weight else "fake", loss, logs

    def match(self, roles: Roles, batch: Batch, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of samples y, and what to log."""
        path, t = roles["net"].path, score.times_of(self.times, batch, "match.t", roles["net"].path)
        with torch.no_grad():
            x = path.mix(y, batch.normal("match.eps"), t)
            real = guided_teacher(roles["teacher"], path, self.guide)(x, t, batch.cond).x0
            fake = roles["fake"](x, t, batch.cond).x0
            step = score.direction(path, y, t, fake, real, self.scale)
        loss = score.surrogate(y, step).mean()
        return loss, {"matching": loss, **score.watched(y.detach(), fake, real)}

    def fooling(self, roles: Roles, batch: Batch, y: Tensor) -> Tensor:
        """The student's adversarial loss [B]; its gradient goes through the frozen fake score."""
        fake, head = roles["fake"], roles["disc"].net
        t = score.times_of(self.critic_times, batch, "gan.t", fake.path)
        with score.frozen(fake.net, head):
            x = fake.path.mix(y, batch.normal("gan.eps"), t)
            return critic.generator_losses(critic.logits(head, fake, x, t, batch.cond, self.sites))

    def learn(self, roles: Roles, batch: Batch, y: Tensor, name: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The fake score's loss on samples y, and the discriminator's on them and the data."""
        fake = roles["fake"]
        t = score.times_of(self.critic_times, batch, f"{name}.t", fake.path)
        eps = batch.normal(f"{name}.eps")
        loss = score.denoising_losses(fake, y, eps, t, batch.cond, self.weighting).mean()
        if not self.gan_weight:
            return loss, {"fake_denoising": loss}
        t = score.times_of(self.critic_times, batch, f"{name}.gan.t", fake.path)
        on = [
            self.judge(roles, batch, fake.path.mix(z, batch.normal(f"{name}.gan.{side}"), t), t)
            for side, z in (("real", batch.x), ("fake", y))
        ]
        judged = critic.discriminator_losses(*on).mean()
        logs = {"fake_denoising": loss, "disc": judged, **critic.accuracies(*on)}
        return loss + self.disc_weight * judged, logs

    def judge(self, roles: Roles, batch: Batch, x: Tensor, t: Tensor) -> Tensor:
        """The discriminator's logits [B]."""
        return critic.logits(roles["disc"].net, roles["fake"], x, t, batch.cond, self.sites)

    @torch.no_grad()
    def lag(self, roles: Roles, batch: Batch, y: Tensor) -> Tensor:
        """The fake score's loss on the step's first samples: how far it falls in a step is how far it was behind."""
        fake: Denoiser = roles["fake"]
        t = score.times_of(self.critic_times, batch, "lag.t", fake.path)
        return score.denoising_losses(fake, y, batch.normal("lag.eps"), t, batch.cond, self.weighting).mean()

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The energy distance between the student's samples and data held out."""
        return score.validation(roles["net"], batch, self.grid, self.steps)

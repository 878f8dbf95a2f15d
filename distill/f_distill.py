"""f-distill: distribution matching under any f-divergence, by weighting the difference of scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import part
from gen.diffusion.denoiser import Denoiser, DenoiserLike
from gen.diffusion.path import expand
from gen.diffusion.times import Uniform as AllTimes
from gen.diffusion.weighting import Uniform as AllAlike
from gen.distillers.lib import critic, score
from gen.distillers.lib.score import Scale
from gen.distillers.lib.teacher import guided_teacher
from gen.training.objectives import Batch, Roles, Step
from gen.training.run import Run

__all__ = ["FDistill"]

Divergence = Literal[
    "reverse_kl", "softened_reverse_kl", "js", "hellinger", "forward_kl", "jeffreys", "neyman", "pearson"
]

# h(r) = r^2 f''(r) as a function of log r, r = p / q: data (or teacher) over student, D_f = E_q f(r).
WEIGHTS: dict[Divergence, Callable[[Tensor], Tensor]] = {
    "reverse_kl": torch.ones_like,  # f = -log r
    "softened_reverse_kl": lambda log: torch.sigmoid(-log),  # (r + 1) log(1/2 + 1/(2 r)); h = 1 / (1 + r)
    "js": torch.sigmoid,  # r log r - (r + 1) log((r + 1) / 2); h = r / (1 + r)
    "hellinger": lambda log: (log / 2).exp() / 4,  # 1 - sqrt r
    "forward_kl": torch.exp,  # r log r
    "jeffreys": lambda log: log.exp() + 1,  # (r - 1) log r
    "neyman": lambda log: 2 * (-log).exp(),  # 1 / r - 1
    "pearson": lambda log: 2 * (2 * log).exp(),  # (r - 1)^2
}


class Ratios(nn.Module):
    """The mean density ratio of each bin of times, [bins]: memory."""

    def __init__(self, bins: int):
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.ones(bins, dtype=torch.float64))


@dataclass(frozen=True)
class FDistill:
    """DMD2's step times h(r), r the ratio of data to student at x_t that a discriminator tells (Xu et al. 2025, eq. 7).

    divergence: reverse KL is DMD2 itself; Neyman's is in the public code only, Pearson's our own. r = exp(logit),
    clipped to `clip`. normalise: "time" divides r by the mean of its bin of times, which is kept with `decay`; "batch"
    divides h by its mean over the batch, so that it is 1; published is both. The bins hold equal shares of the density
    of `times`. Each micro-batch has its own means.
    features: of the frozen teacher, as in the public code, or of the fake score, which then learns from the
    discriminator too, as in DMD2. It sees noise as `times` has it, where its ratio is used. gan_weight: of the
    student's adversarial loss (0.001 or 0.003 there; with 0 the ratio is still learnt). r1: of |d logit / dx|^2 / 2 on
    data (1 or 0 there). All else is as in DMD2, and the loss is no more a signal of quality than its.
    """

    divergence: Divergence = "js"
    steps: int = 1
    grid: Any = part("samplers.grids", default="linear")
    times: Any = part("diffusion.times", default=AllTimes(0.02, 0.98))
    critic_steps: int = 5
    critic_times: Any = part("diffusion.times", default=AllTimes())
    weighting: Any = part("diffusion.weighting", default=AllAlike())
    critic_rate: float = 1.0
    guide: Any = part("samplers.guides", default=None)
    scale: Scale = "error"
    normalise: Literal["both", "time", "batch", "none"] = "both"
    bins: int = 10
    decay: float = 0.5
    clip: tuple[float, float] = (0.1, 20.0)
    features: Literal["teacher", "fake"] = "teacher"
    gan_weight: float = 0.001
    disc_weight: float = 1.0
    r1: float = 0.0
    sites: tuple[str, ...] = ("trunk",)
    hidden: int = 128

    def __post_init__(self) -> None:
        score.check_settings(self, critic_steps=1, bins=1)
        if min(self.gan_weight, self.r1) < 0 or not self.disc_weight > 0:
            raise UserError(
                f"FDistill: gan_weight = {self.gan_weight}, r1 = {self.r1}, disc_weight = {self.disc_weight}; "
                "the last must be positive, the others at least 0"
            )
        if not (0 < self.clip[0] < self.clip[1] and 0 <= self.decay < 1):
            raise UserError(f"FDistill: clip = {self.clip}, decay = {self.decay}; 0 < low < high and 0 <= decay < 1")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The run of the student: the teacher's, from its weights."""
        return score.student_run(run, teacher, self)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        fake = score.fake_score(net, teacher, "FDistill")
        if self.features == "teacher" and not isinstance(teacher, Denoiser):
            raise UserError("FDistill: features = teacher, and this teacher has none that can be seen: take fake")
        head = critic.head_for(fake, self.sites, self.hidden)
        return {"net": net, "fake": fake, "disc": head, "ratios": Ratios(self.bins)}

    @property
    def rates(self) -> dict[str, float]:
        return {"fake": self.critic_rate, "disc": self.critic_rate}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        score.check_pair(f, roles["teacher"])
        grid, noise = self.grid.times(f.path, self.steps), score.named(batch.noise, "student")
        y = f(*score.rung(f, batch, noise, grid), batch.cond).x0
        yield "net", *self.match(roles, batch, y)
        y = first = y.detach()
        before = self.lag(roles, batch, first)
        for j in range(self.critic_steps):
            name = f"critic.{j}"
            if j:
                y = score.generate(f, batch, score.named(batch.noise, name), grid)
            loss, logs = self.learn(roles, batch, y, name)
            if 0 < j == self.critic_steps - 1:
                logs |= {"fake_lag": before - self.lag(roles, batch, first)}
            yield ("fake", "disc"), loss, logs

    def match(self, roles: Roles, batch: Batch, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of samples y, and what to log."""
        path, u = roles["net"].path, batch.noise.uniform("match.t")
        t = self.times.at(u, path).to(y.device)
        x = path.mix(y, batch.normal("match.eps"), t)
        with score.frozen(roles["fake"].net, roles["disc"].net):
            logit = self.judge(roles, batch, x, t)
        with torch.no_grad():
            real = guided_teacher(roles["teacher"], path, self.guide)(x, t, batch.cond).x0
            fake = roles["fake"](x, t, batch.cond).x0
            h, logs = self.weigh(logit.detach().double(), (u * self.bins).long().to(y.device), roles["ratios"].net)
            step = expand(h, y) * score.direction(path, y, t, fake, real, self.scale)
        loss = matching = score.surrogate(y, step).mean()
        if self.gan_weight:
            loss = loss + self.gan_weight * critic.generator_losses(logit).mean()
        return loss, {"matching": matching, **logs, **score.watched(y.detach(), fake, real)}

    @torch.no_grad()
    def weigh(self, logit: Tensor, place: Tensor, ratios: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """h [B] of the discriminator's logits [B] at times in the bins `place` [B], and what to log of it."""
        low, high = self.clip
        r = logit.clamp(-10, 10).exp().clamp(low, high)
        count = torch.bincount(place, minlength=self.bins)
        here = torch.bincount(place, weights=r, minlength=self.bins) / count.clamp(min=1)
        old = ratios.mean.to(here)
        here = torch.where(count > 0, here, old)
        means = self.decay * old + (1 - self.decay) * here
        if self.normalise in ("both", "time"):
            r = r / means[place]
        h = WEIGHTS[self.divergence](r.log())
        if self.normalise in ("both", "batch"):
            h = h / h.mean()
        logs = {f"ratio.{i}": value for i, value in enumerate(here)}
        logs |= {"weight_min": h.min(), "weight_mean": h.mean(), "weight_max": h.max()}
        return h, {**logs, "weight_ess": h.sum() ** 2 / (len(h) * h.square().sum())}

    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        """Remembers the mean ratio of each bin."""
        mean = roles["ratios"].net.mean
        here = torch.tensor([logs[f"ratio.{i}"] for i in range(self.bins)]).to(mean)
        mean.copy_(self.decay * mean + (1 - self.decay) * here)

    def learn(self, roles: Roles, batch: Batch, y: Tensor, name: str) -> tuple[Tensor, dict[str, Tensor]]:
        """The fake score's loss on samples y, and the discriminator's on them and the data."""
        fake = roles["fake"]
        t = score.times_of(self.critic_times, batch, f"{name}.t", fake.path)
        loss = score.denoising_losses(fake, y, batch.normal(f"{name}.eps"), t, batch.cond, self.weighting).mean()
        t = score.times_of(self.times, batch, f"{name}.gan.t", fake.path)
        real = fake.path.mix(batch.x, batch.normal(f"{name}.gan.real"), t).requires_grad_(self.r1 > 0)
        made = fake.path.mix(y, batch.normal(f"{name}.gan.fake"), t)
        with critic.twice_differentiable(self.r1 > 0):
            on = [self.judge(roles, batch, x, t) for x in (real, made)]
        judged = critic.discriminator_losses(*on).mean()
        logs = {"fake_denoising": loss, "disc": judged, **critic.accuracies(*on)}
        if self.r1:
            judged = judged + self.r1 / 2 * critic.input_penalty(on[0], real).mean()
        return loss + self.disc_weight * judged, logs

    def judge(self, roles: Roles, batch: Batch, x: Tensor, t: Tensor) -> Tensor:
        """The discriminator's logits [B]."""
        return critic.logits(roles["disc"].net, roles[self.features], x, t, batch.cond, self.sites)

    @torch.no_grad()
    def lag(self, roles: Roles, batch: Batch, y: Tensor) -> Tensor:
        """The fake score's loss on the step's first samples: how far it falls in a step is how far it was behind."""
        fake: Denoiser = roles["fake"]
        t = score.times_of(self.critic_times, batch, "lag.t", fake.path)
        return score.denoising_losses(fake, y, batch.normal("lag.eps"), t, batch.cond, self.weighting).mean()

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """The energy distance between the student's samples and data held out."""
        return score.validation(roles["net"], batch, self.grid, self.steps)

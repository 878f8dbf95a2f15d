"""DMD2: a few-step student whose samples' score, learned beside it, is drawn to the teacher's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.denoiser import Denoiser, DenoiserLike
from gen.diffusion.times import Times
from gen.distillers.lib import discriminator
from gen.distillers.lib.networks import requires_grad_frozen
from gen.distillers.lib.score import (
    Scale,
    ScoreDistillation,
    backward_simulate,
    check_same_terms,
    dmd_gradient,
    fold_in,
    generate,
    sample_stats,
    surrogate_losses,
)
from gen.distillers.lib.teacher import guided_teacher
from gen.distillers.lib.times import draw_times
from gen.training.objectives import Batch, Roles, Step

__all__ = ["DMD2"]


@dataclass(frozen=True)
class DMD2(ScoreDistillation):
    """Distribution matching distillation, DMD2 (Yin et al. 2024): reverse KL by the difference of scores.

    Student and teacher are compared at all noise levels. Each step is one update of the student and then critic_steps
    of the fake score, the first of them on the samples that the student was just trained on, as in the authors' loop.
    The loss is the mean over elements of 1/2 (y - stop(y - g))^2, g = (fake - real) / mean|y - real|: it is no signal
    of quality.

    Attributes:
        scale: "kl" takes the gradient of KL itself, alpha^2 / sigma^2 (fake - real), in place of g: for data of few
            numbers, where a sample's mean error may be next to 0 and g anything.
        gan_weight, disc_weight: of the adversarial losses of the student and of the discriminator, at least 0; the
            paper's are 0.003 and 0.01. disc_weight = 0 leaves the discriminator out.
        r1: weight of |d logit / dx|^2 / 2 on data in the discriminator's loss, at least 0.
        features: whose features the discriminator sees: the "fake" score's, which then learns from it too, as in the
            paper, or the frozen "teacher"'s.
        sites: of these features.
        hidden: width of the discriminator's head, at least 1.
    """

    scale: Scale = "error"
    gan_weight: float = 0.0
    disc_weight: float = 0.0
    r1: float = 0.0
    features: Literal["teacher", "fake"] = "fake"
    sites: tuple[str, ...] = ("trunk",)
    hidden: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, gan_weight="[0, inf)", disc_weight="[0, inf)", r1="[0, inf)", hidden="[1, inf)")
        if max(self.gan_weight, self.r1) > 0 and self.disc_weight == 0:
            raise UserError(
                f"{type(self).__name__}: gan_weight = {self.gan_weight}, r1 = {self.r1}, disc_weight = 0; without "
                "disc_weight there is no discriminator"
            )

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        roles = super().roles(net, teacher)
        if not self.disc_weight:
            return roles
        if self.features == "teacher" and not isinstance(teacher, Denoiser):
            raise UserError(f"{type(self).__name__}: features = teacher, and this teacher has no network: take fake")
        return {**roles, "disc": discriminator.discriminator_head(roles["fake"], self.sites, self.hidden)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f = roles["net"]
        check_same_terms(f, roles["teacher"])
        grid = self.grid.times(f.path, self.steps)
        y = f(*backward_simulate(f, batch, fold_in(batch.noise, "student"), grid), batch.cond).x0
        yield "net", *self.student_loss(roles, batch, y)
        y = first = y.detach()
        with torch.no_grad():
            before = self.denoising_loss(roles, batch, first, "lag")
        for j in range(self.critic_steps):
            name = f"critic.{j}"
            if j:
                y = generate(f, batch, fold_in(batch.noise, name), grid)
            loss, logs = self.critic_loss(roles, batch, y, name)
            if 0 < j == self.critic_steps - 1:  # how far the loss falls in a step is how far the fake score lagged
                with torch.no_grad():
                    logs |= {"fake_lag": before - self.denoising_loss(roles, batch, first, "lag")}
            yield ("fake", "disc") if "disc" in roles else "fake", loss, logs

    def student_loss(self, roles: Roles, batch: Batch, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of samples y, and logs."""
        path, t = roles["net"].path, draw_times(self.times, batch, "match.t", roles["net"].path)
        with torch.no_grad():
            x = path.mix(y, batch.normal("match.eps"), t)
            real = guided_teacher(roles["teacher"], path, self.guide)(x, t, batch.cond).x0
            fake = roles["fake"](x, t, batch.cond).x0
            gradient = dmd_gradient(path, y, t, fake, real, self.scale)
        loss = matching = surrogate_losses(y, gradient).mean()
        if self.gan_weight:
            t = draw_times(self.critic_times, batch, "gan.t", path)
            logit = self.frozen_logits(roles, batch, path.mix(y, batch.normal("gan.eps"), t), t)
            loss = loss + self.gan_weight * discriminator.generator_losses(logit).mean()
        return loss, {"matching": matching, **sample_stats(y.detach(), fake, real)}

    def critic_loss(self, roles: Roles, batch: Batch, y: Tensor, name: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the fake score's loss on samples y and the discriminator's on them and the data, and logs."""
        loss, path = self.denoising_loss(roles, batch, y, name), roles["fake"].path
        if "disc" not in roles:
            return loss, {"fake_denoising": loss}
        t = draw_times(self.disc_times, batch, f"{name}.gan.t", path)
        x = path.mix(batch.x, batch.normal(f"{name}.gan.real"), t).requires_grad_(self.r1 > 0)
        # Fused attention has no second derivative.
        with sdpa_kernel(SDPBackend.MATH) if self.r1 else nullcontext():
            real = self.logits(roles, batch, x, t)
            fake = self.logits(roles, batch, path.mix(y, batch.normal(f"{name}.gan.fake"), t), t)
        disc = discriminator.discriminator_losses(real, fake).mean()
        logs = {"fake_denoising": loss, "disc": disc, **discriminator.discriminator_accuracy(real, fake)}
        if self.r1:
            disc = disc + self.r1 / 2 * discriminator.r1_penalty(real, x).mean()
        return loss + self.disc_weight * disc, logs

    @property
    def disc_times(self) -> Times:
        """Density of the times at which the discriminator learns."""
        return self.critic_times

    def logits(self, roles: Roles, batch: Batch, x: Tensor, t: Tensor) -> Tensor:
        """Return the discriminator's logits [B] of x_t."""
        head, f = roles["disc"].net, roles[self.features]
        return discriminator.discriminator_logits(head, f, x, t, batch.cond, self.sites)

    def frozen_logits(self, roles: Roles, batch: Batch, x: Tensor, t: Tensor) -> Tensor:
        """Return the same with gradients in x alone."""
        with requires_grad_frozen(roles[self.features].net, roles["disc"].net):
            return self.logits(roles, batch, x, t)

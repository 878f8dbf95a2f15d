"""f-distill: distribution matching under any f-divergence, by weighting the difference of scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.path import expand
from gen.diffusion.times import Times
from gen.distillers.dmd2 import DMD2
from gen.distillers.lib.discriminator import generator_losses
from gen.distillers.lib.score import dmd_gradient, sample_stats, surrogate_losses
from gen.distillers.lib.teacher import guided_teacher
from gen.training.objectives import Batch, Roles

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


class DensityRatios(nn.Module):
    """The mean density ratio of each bin of times, [bins], as a buffer."""

    def __init__(self, bins: int):
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.ones(bins, dtype=torch.float64))


@dataclass(frozen=True)
class FDistill(DMD2):
    """f-distill, distribution matching under any f-divergence (Xu et al. 2025): DMD2's gradient times h(r) (eq. 7).

    r = exp(logit) is the ratio of data to student at x_t, by a discriminator. The discriminator learns at noise levels
    as `times` has them, where its ratio is used, and with gan_weight = 0 the ratio is still learned. Each micro-batch
    has its own means. All else is as in DMD2, and the loss is no more a signal of quality than its.

    Attributes:
        gan_weight, disc_weight: see DMD2; disc_weight is positive. gan_weight is 0.001 or 0.003 in the paper.
        features: see DMD2; the teacher's in the public code.
        divergence: reverse KL is DMD2 itself; Neyman's is in the public code only, Pearson's our own.
        normalise: "time" divides r by the mean of its bin of times; "batch" divides h by its mean over the batch, so
            that it is 1; the published is "both".
        bins: number of bins, which hold equal shares of the density of `times`, at least 1.
        ratio_decay: share of a bin's mean that stays at each update, in [0, 1).
        ratio_clip: bounds of r, 0 < low < high.
    """

    gan_weight: float = 0.001
    disc_weight: float = 1.0
    features: Literal["teacher", "fake"] = "teacher"
    divergence: Divergence = "js"
    normalise: Literal["both", "time", "batch", "none"] = "both"
    bins: int = 10
    ratio_decay: float = 0.5
    ratio_clip: tuple[float, float] = (0.1, 20.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, disc_weight="(0, inf)", bins="[1, inf)", ratio_decay="[0, 1)", ratio_clip="(0, inf)")
        if not self.ratio_clip[0] < self.ratio_clip[1]:
            raise UserError(f"FDistill: ratio_clip = {self.ratio_clip}; it must be 0 < low < high")

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        return {**super().roles(net, teacher), "ratios": DensityRatios(self.bins)}

    @property
    def disc_times(self) -> Times:
        return self.times

    def student_loss(self, roles: Roles, batch: Batch, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        path, u = roles["net"].path, batch.noise.uniform("match.t")
        t = self.times.at(u, path).to(y.device)
        x = path.mix(y, batch.normal("match.eps"), t)
        logit = self.frozen_logits(roles, batch, x, t)
        with torch.no_grad():
            real = guided_teacher(roles["teacher"], path, self.guide)(x, t, batch.cond).x0
            fake = roles["fake"](x, t, batch.cond).x0
            bins = (u * self.bins).long().to(y.device)
            h, logs = self.weights(logit.detach().double(), bins, roles["ratios"].net.mean)
            gradient = expand(h, y) * dmd_gradient(path, y, t, fake, real, self.scale)
        loss = matching = surrogate_losses(y, gradient).mean()
        if self.gan_weight:
            loss = loss + self.gan_weight * generator_losses(logit).mean()
        return loss, {"matching": matching, **logs, **sample_stats(y.detach(), fake, real)}

    @torch.no_grad()
    def weights(self, logit: Tensor, bins: Tensor, mean: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return h [B] of the discriminator's logits [B], and logs; bins [B] of their times, mean ratio of each bin."""
        r = logit.clamp(-10, 10).exp().clamp(*self.ratio_clip)
        count = torch.bincount(bins, minlength=self.bins)
        now = torch.bincount(bins, weights=r, minlength=self.bins) / count.clamp(min=1)
        old = mean.to(now)
        now = torch.where(count > 0, now, old)
        if self.normalise in ("both", "time"):
            r = r / (self.ratio_decay * old + (1 - self.ratio_decay) * now)[bins]
        h = WEIGHTS[self.divergence](r.log())
        if self.normalise in ("both", "batch"):
            h = h / h.mean()
        logs = {f"ratio.{i}": value for i, value in enumerate(now)}
        logs |= {"weight_min": h.min(), "weight_mean": h.mean(), "weight_max": h.max()}
        return h, {**logs, "weight_ess": h.sum() ** 2 / (len(h) * h.square().sum())}

    def observe(self, roles: Roles, logs: dict[str, float]) -> None:
        """Update the mean ratio of each bin."""
        mean = roles["ratios"].net.mean
        now = torch.tensor([logs[f"ratio.{i}"] for i in range(self.bins)]).to(mean)
        mean.copy_(self.ratio_decay * mean + (1 - self.ratio_decay) * now)

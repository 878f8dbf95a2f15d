"""Flow-GRPO: policy gradients on the steps of the flow's SDE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.path import expand
from gen.distillers.lib.networks import ema_update, eval_mode, frozen_copy
from gen.distillers.lib.policy import (
    PolicyOptimisation,
    Transition,
    group_advantages,
    group_condition,
    sde_rollout,
    sde_transition,
)
from gen.training.objectives import Batch, Roles, Step

__all__ = ["FlowGRPO"]


@dataclass(frozen=True)
class FlowGRPO(PolicyOptimisation):
    """Flow-GRPO (Liu et al. 2025): clipped policy gradients on the steps of a stochastic rollout.

    The loss is max(-A rho, -A clip(rho, 1 +- clip_range)) + beta KL, the mean over drawn steps. A step is drawn from
    N(mean, std^2), see sde_transition; rho is the ratio of its likelihood, in the mean over dimensions, to that under
    the weights that drew it. KL is |mean - reference's|^2 / (2 g^2), the mean over dimensions, as published: the exact
    divergence times the step's length. The last step, to t = 0, draws nothing and is no part of the policy.

    Attributes:
        grid, steps: times of the rollout, steps at least 2; the code's.
        noise_level: of the rollout's SDE, positive; the code's.
        clip_range: of the ratio, positive; the code's.
        advantage_clip: largest absolute advantage, positive; the code's.
        beta: weight of the KL, at least 0; the code's.
        refresh: updates after which the policy that draws is renewed, at least 1; at 1 the ratio is always 1, and
            clip_range idle. Otherwise it is the role "old".
    """

    grid: Grid = part("samplers.grids", default="natural")
    steps: int = 10
    noise_level: float = 0.7
    clip_range: float = 1e-4
    advantage_clip: float = 5.0
    beta: float = 0.04
    refresh: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, steps="[2, inf)", refresh="[1, inf)", noise_level="(0, inf)", clip_range="(0, inf)")
        check_fields(self, advantage_clip="(0, inf)", beta="[0, inf)")

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        roles = super().roles(net, teacher)
        return roles if self.refresh == 1 else {**roles, "old": frozen_copy(net)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f, old = roles["net"], roles.get("old", roles["net"])
        if "old" in roles and batch.step % self.refresh == 0:
            ema_update(old.net, f.net, 0.0)
        points, times, cond = self.rollout(old, batch)
        reward, logs = self.rewards(points[-1], cond)
        advantage = group_advantages(reward, self.group_size, self.advantage_clip)
        with eval_mode(f):
            losses, more = self.losses(roles, points, times, cond, advantage)
        yield "net", losses.mean(), {**logs, "advantage_abs": advantage.abs().mean(), **more}

    def rollout(self, f: DenoiserLike, batch: Batch) -> tuple[list[Tensor], Tensor, Cond]:
        """Return the states of a rollout at each time, the times, and the condition, the same within a group."""
        cond = group_condition(batch.cond, len(batch.x), self.group_size)
        times = self.grid.times(f.path, self.steps)
        with eval_mode(f):
            start = f.path.start(batch.normal("start"), times[0])
            return sde_rollout(f, start, times, cond, batch.noise, self.noise_level), times, cond

    def sample(self, f: DenoiserLike, batch: Batch) -> tuple[Tensor, Cond]:
        """Return the ends of a rollout and their condition."""
        points, _, cond = self.rollout(f, batch)
        return points[-1], cond

    def losses(
        self, roles: Roles, points: list[Tensor], times: Tensor, cond: Cond, advantage: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of every drawn step of every sample, [(steps - 1) * B], and logs."""
        drawn = torch.cat(points[1:-1])
        step = self.policy(roles["net"], points, times, cond)
        log_prob = step.log_prob(drawn)
        with torch.no_grad():
            before = log_prob.detach()
            if "old" in roles:
                before = self.policy(roles["old"], points, times, cond).log_prob(drawn)
            reference = self.policy(roles["teacher"], points, times, cond).mean
        ratio = (log_prob - before).exp()
        a = advantage.to(ratio).repeat(len(points) - 2)
        clipped = ratio.clamp(1 - self.clip_range, 1 + self.clip_range)
        # The network's own mean is in this term, outside no_grad: else the pull has a value and no gradient.
        kl = ((step.mean - reference) ** 2 / (2 * expand(step.g, reference) ** 2)).flatten(1).mean(1)
        off = (ratio.detach() - 1).abs()
        logs = {"ratio": ratio.detach().mean(), "ratio_off": off.max(), "kl": kl.detach().mean()}
        logs["clip_fraction"] = (off > self.clip_range).double().mean()
        return torch.maximum(-a * ratio, -a * clipped) + self.beta * kl, logs

    def policy(self, f: DenoiserLike, points: list[Tensor], times: Tensor, cond: Cond) -> Transition:
        """Return f's distribution of every drawn step of a rollout: all in one call, [(steps - 1) * B]."""
        n, drawn = len(points[0]), len(points) - 2
        t, s = (ends.repeat_interleave(n).to(points[0].device) for ends in (times[:drawn], times[1 : drawn + 1]))
        x, cond = torch.cat(points[:drawn]), {k: torch.cat([v] * drawn) for k, v in cond.items()}
        return sde_transition(f.path, x, f(x, t, cond), t, s, self.noise_level, times[1].to(x.device))

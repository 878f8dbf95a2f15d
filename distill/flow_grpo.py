"""Flow-GRPO: policy gradients on the steps of the flow's SDE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import build, part
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.path import expand
from gen.distillers.lib.rollout import (
    Transition,
    advantages,
    evaluating,
    follow,
    frozen,
    grouped,
    judged,
    transition,
    walk,
)
from gen.distillers.lib.teacher import require_teacher
from gen.distillers.rewards.classifier import Classifier
from gen.training.objectives import Batch, Roles, Step
from gen.training.objectives.denoise import check_state
from gen.training.run import Run

__all__ = ["FlowGRPO"]


@dataclass(frozen=True)
class FlowGRPO:
    """max(-A rho, -A clip(rho, 1 +- clip)) + beta KL over the steps of a stochastic rollout (Liu et al. 2025).

    A step is drawn from N(mean, std^2), see gen.distillers.lib.rollout.transition, level = sqrt(noise's square) on
    flow; rho is the ratio of its likelihood, in the mean over dimensions, to that under the weights that drew it. KL is
    |mean - reference's|^2 / (2 g^2), the mean over dimensions, as published: the exact divergence times the step's
    length. The last step, to t = 0, draws nothing and is no part of the policy. advantage: where advantages are cut.

    refresh: the policy that draws is renewed every so many updates; at 1 the ratio is always 1, and `clip` idle.
    """

    reward: Any = part("distillers.rewards", default=Classifier())
    grid: Any = part("samplers.grids", default="linear")
    steps: int = 10
    noise: float = 0.7
    group: int = 16
    clip: float = 1e-4
    advantage: float = 5.0
    beta: float = 0.04
    refresh: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", build("samplers.grids", self.grid))
        lowest = {"steps": 2, "group": 2, "refresh": 1}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise UserError(f"FlowGRPO: {name} = {getattr(self, name)}; it must be at least {low}")
        if not (self.noise > 0 and self.clip > 0 and self.advantage > 0 and self.beta >= 0):
            raise UserError(
                f"FlowGRPO: noise = {self.noise}, clip = {self.clip}, advantage = {self.advantage}, beta = {self.beta};"
                " all must be positive, beta may be 0"
            )

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """The teacher's run from its weights, short and at a tenth of its learning rate."""
        optim = replace(run.optim, lr=run.optim.lr / 10)
        return replace(run, objective=self, teacher=str(teacher), init=str(teacher), optim=optim, steps=200)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_state(net, "FlowGRPO")
        require_teacher("FlowGRPO", teacher)
        return {"net": net} if self.refresh == 1 else {"net": net, "old": frozen(net)}

    def __call__(self, roles: Roles, batch: Batch) -> Iterator[Step]:
        f, old = roles["net"], roles.get("old", roles["net"])
        if "old" in roles and batch.step % self.refresh == 0:
            follow(old.net, f.net)
        points, times, cond = self.sample(old, batch)
        reward, logs = judged(self.reward, points[-1], cond, self.group)
        a = advantages(reward, self.group, self.advantage)
        with evaluating(f):
            losses, more = self.losses(roles, points, times, cond, a)
        yield "net", losses.mean(), {**logs, "advantage_abs": a.abs().mean(), **more}

    def sample(self, f: DenoiserLike, batch: Batch) -> tuple[list[Tensor], Tensor, Cond]:
        """A rollout: its points at each time, the times, and the condition, each for a whole group."""
        cond, times = grouped(batch.cond, len(batch.x), self.group), self.grid.times(f.path, self.steps)
        with evaluating(f):
            points = walk(f, f.path.start(batch.normal("start"), times[0]), times, cond, batch.noise, self.noise)
        return points, times, cond

    def losses(
        self, roles: Roles, points: list[Tensor], times: Tensor, cond: Cond, advantage: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of every drawn step of every sample, [(steps - 1) * B], and logs."""
        f, drawn = roles["net"], len(points) - 2
        step = self.policy(f, points, times, cond)
        log_prob = step.log_prob(torch.cat(points[1:-1]))
        with torch.no_grad():
            before = log_prob.detach()
            if "old" in roles:
                before = self.policy(roles["old"], points, times, cond).log_prob(torch.cat(points[1:-1]))
            reference = self.policy(roles["teacher"], points, times, cond).mean
        ratio = (log_prob - before).exp()
        a = advantage.to(ratio).repeat(drawn)
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        # The network's own mean is in this term, outside no_grad: else the pull has a value and no gradient.
        kl = ((step.mean - reference) ** 2 / (2 * expand(step.g, reference) ** 2)).flatten(1).mean(1)
        off = (ratio.detach() - 1).abs()
        logs = {"ratio": ratio.detach().mean(), "ratio_off": off.max(), "kl": kl.detach().mean()}
        logs["clip_fraction"] = (off > self.clip).double().mean()
        return torch.maximum(-a * ratio, -a * clipped) + self.beta * kl, logs

    def policy(self, f: DenoiserLike, points: list[Tensor], times: Tensor, cond: Cond) -> Transition:
        """f's distribution of every drawn step from where the rollout was: all steps in one call, [(steps - 1) * B]."""
        n, drawn = len(points[0]), len(points) - 2
        t, s = (part_.repeat_interleave(n).to(points[0].device) for part_ in (times[:drawn], times[1 : drawn + 1]))
        x, cond = torch.cat(points[:drawn]), {k: torch.cat([v] * drawn) for k, v in cond.items()}
        return transition(f.path, x, f(x, t, cond), t, s, self.noise, times[1].to(x.device))

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Minus the mean reward of rollouts on fixed noise."""
        n = len(batch.x) - len(batch.x) % self.group
        part_ = replace(batch, x=batch.x[:n], cond={k: v[:n] for k, v in batch.cond.items()})
        points, _, cond = self.sample(
            roles["net"], replace(part_, noise=replace(batch.noise, seeds=batch.noise.seeds[:n]))
        )
        return -judged(self.reward, points[-1], cond, self.group)[0].mean()

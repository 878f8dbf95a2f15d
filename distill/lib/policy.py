"""Policy optimisation: groups, advantages, diversity, and a stochastic policy whose steps have a likelihood."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.distillers.lib.teacher import require_teacher
from gen.distillers.rewards import Reward
from gen.distillers.rewards.classifier import Classifier
from gen.training.distillation import Distiller
from gen.training.objectives import Batch, Roles, join
from gen.training.objectives.denoise import check_state
from gen.training.run import Run

__all__ = [
    "PolicyOptimisation",
    "Transition",
    "diversity",
    "group_advantages",
    "group_condition",
    "sde_rollout",
    "sde_transition",
    "whole_groups",
]

MIN_ALPHA = 1e-3  # an alpha below it counts as 0


@dataclass(frozen=True)
class PolicyOptimisation(Distiller):
    """The common part of reinforcement learning: the student begins as the teacher, and is held to it.

    Attributes:
        reward: of gen.distillers.rewards.
        group_size: samples of one condition that are compared, at least 2.
    """

    reward: Reward = part("distillers.rewards", default=Classifier())
    group_size: int = 16

    def __post_init__(self) -> None:
        check_fields(self, group_size="[2, inf)")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run from its weights, short and at a tenth of its learning rate."""
        optim = replace(run.optim, lr=run.optim.lr / 10)
        return replace(run, objective=self, teacher=str(teacher), init=str(teacher), optim=optim, steps=200)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        check_state(net, type(self).__name__)
        require_teacher(type(self).__name__, teacher)
        return {"net": net}

    @abstractmethod
    def sample(self, f: DenoiserLike, batch: Batch) -> tuple[Tensor, Cond]:
        """Return the policy's samples, shaped as the batch, and their condition, the same within a group."""
        ...

    def rewards(self, x0: Tensor, cond: Cond) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the rewards of samples, [B], and logs."""
        reward = self.reward(x0, cond)
        spread = diversity(self.reward.features(x0), self.group_size)
        logs = {"reward": reward.mean(), "reward_std": reward.std(correction=0), "diversity": spread}
        logs |= {"sample_mean": x0.mean(), "sample_std": x0.std()}
        return reward, {k: v.to(x0.device) for k, v in logs.items()}

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return minus the mean reward on fixed noise."""
        x0, cond = self.sample(roles["net"], whole_groups(batch, self.group_size))
        return -self.rewards(x0, cond)[0].mean()

    def validate_all(self, roles: Roles, batches: Sequence[Batch]) -> float:
        return float(self.validate(roles, join(batches)))  # a mean over whole groups


def group_condition(cond: Cond, n: int, group_size: int) -> Cond:
    """Return the condition of every group's first row for the whole group.

    Args:
        cond: the condition of n rows.
        n: number of rows.
        group_size: rows of a group.

    Raises:
        UserError: if the rows are no whole number of groups.
    """
    if n % group_size:
        raise UserError(
            f"group_size = {group_size} does not divide the {n} samples of a micro-batch: change it or batch_size"
        )
    return {k: v[::group_size].repeat_interleave(group_size, 0) for k, v in cond.items()}


def whole_groups(batch: Batch, group_size: int) -> Batch:
    """Drop the rows at a batch's end that fill no group: held-out data have whatever number they have.

    Args:
        batch: the data.
        group_size: rows of a group.
    """
    n = len(batch.x) - len(batch.x) % group_size
    cond = {k: v[:n] for k, v in batch.cond.items()}
    return replace(batch, x=batch.x[:n], cond=cond, noise=replace(batch.noise, seeds=batch.noise.seeds[:n]))


def group_advantages(reward: Tensor, group_size: int, clip: float) -> Tensor:
    """Return (reward - the group's mean) / (the batch's deviation + 1e-4), clipped, [B] (Liu et al. 2025).

    One deviation for the batch: a group whose rewards are all alike would make signal of its rounding.

    Args:
        reward: [B].
        group_size: rows of a group.
        clip: largest absolute value.
    """
    centred = reward.reshape(-1, group_size)
    centred = (centred - centred.mean(1, keepdim=True)).flatten()
    return (centred / (reward.std(correction=0) + 1e-4)).clamp(-clip, clip)


def diversity(features: Tensor, group_size: int) -> Tensor:
    """Return the mean distance between two samples of a group, 0-d; it falls where a reward is hacked by repetition.

    Args:
        features: of samples, [B, D].
        group_size: rows of a group.
    """
    if group_size < 2:
        return torch.zeros((), device=features.device)
    grouped = features.reshape(-1, group_size, features.shape[-1])  # [groups, group_size, D]
    return torch.cdist(grouped, grouped).sum() / (len(grouped) * group_size * (group_size - 1))


class Transition(NamedTuple):
    """One step of a policy: N(mean, std^2), mean shaped as x, std and the diffusion g = std / sqrt(t - s) as t."""

    mean: Tensor
    std: Tensor
    g: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the mean over dimensions of log N(x; mean, std^2), [B]; in float32 at least, as bfloat16 overflows."""
        mean, std = self.mean.float(), expand(self.std, self.mean.float())
        log = -((x - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * torch.log(torch.tensor(2 * torch.pi))
        return log.flatten(1).mean(1)


def sde_transition(
    path: NoisePath, x: Tensor, pred: Prediction, t: Tensor, s: Tensor, noise_level: float, after_start: Tensor
) -> Transition:
    """Return the Euler-Maruyama step of dx = (u + g^2 eps / (2 sigma)) dt + g dW, which has the ODE's marginals.

    g^2 = level^2 sigma (sigma' alpha - sigma alpha') / alpha, -level^2 sigma^2 times the slope of log alpha / sigma: on
    flow it is Flow-GRPO's level^2 t / (1 - t), and level = sqrt(2) is DDPM's time reversal on any path.

    Args:
        path: the noise path.
        x: states [B, ...] at t.
        pred: the prediction there.
        t, s: times before and after the step, 0-d or [B], s < t.
        noise_level: the level.
        after_start: the grid's second time, whose alpha is taken where alpha = 0 and g^2 would be infinite.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    divisor = torch.where(alpha < MIN_ALPHA, path.alpha(after_start), alpha)
    square = noise_level**2 * sigma * (path.dsigma(t) * alpha - sigma * path.dalpha(t)) / divisor
    drift = square * (t - s) / (2 * sigma)
    mean = path.advance(x, pred, t, s) - expand(drift, x) * pred.eps
    return Transition(mean, (square * (t - s)).sqrt(), square.sqrt())


@torch.no_grad()
def sde_rollout(
    f: DenoiserLike, x: Tensor, times: Tensor, cond: Cond, noise: Noise, noise_level: float
) -> list[Tensor]:
    """Sample a policy; the last step, to t = 0, is the prediction of x0.

    Args:
        f: the denoiser.
        x: states [B, ...] at times[0].
        times: falling times [N + 1].
        cond: the condition.
        noise: of the steps.
        noise_level: see `sde_transition`.

    Returns:
        The states at all times.
    """
    points = [x]
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        pred = f(x, t, cond)
        if s == 0:
            x = pred.x0
        else:
            step = sde_transition(f.path, x, pred, t, s, noise_level, times[1])
            x = step.mean + expand(step.std, x) * noise.normal(i, x.shape[1:]).to(x)
        points.append(x)
    return points

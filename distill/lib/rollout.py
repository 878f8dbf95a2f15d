"""What methods of reinforcement learning share: groups, advantages, diversity, frozen copies, and the policy's step."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.net import unwrap
from gen.diffusion.noise import Noise
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.training.objectives import Batch

__all__ = [
    "Transition",
    "advantages",
    "diversity",
    "evaluating",
    "follow",
    "frozen",
    "grouped",
    "judged",
    "output_as",
    "transition",
    "walk",
    "whole_groups",
]

NO_DATA = 1e-3  # an alpha below it is 0


def grouped(cond: Cond, n: int, group: int) -> Cond:
    """The condition of every group-th row for the whole group, within which samples are compared.

    Raises UserError if the n rows are no whole number of groups.
    """
    if n % group:
        raise UserError(f"group = {group} does not divide the {n} samples of a micro-batch: change group or batch_size")
    return {k: v[::group].repeat_interleave(group, 0) for k, v in cond.items()}


def whole_groups(batch: Batch, group: int) -> Batch:
    """The batch without the rows at its end that fill no group: held-out data have whatever number they have."""
    n = len(batch.x) - len(batch.x) % group
    cond = {k: v[:n] for k, v in batch.cond.items()}
    return replace(batch, x=batch.x[:n], cond=cond, noise=Noise(batch.noise.seeds[:n]))


def advantages(reward: Tensor, group: int, clip: float) -> Tensor:
    """(reward - the group's mean) / (the batch's deviation + 1e-4), clipped to +-clip, [B] (Liu et al. 2025).

    One deviation for the batch: a group whose rewards are all alike would make signal of its rounding.
    """
    away = reward.reshape(-1, group)
    away = (away - away.mean(1, keepdim=True)).flatten()
    scaled: Tensor = away / (reward.std(correction=0) + 1e-4)
    return scaled.clamp(-clip, clip)


def diversity(features: Tensor, group: int) -> Tensor:
    """Mean distance between two samples of a group, [B, D] -> 0-d. It falls where a reward is hacked by repetition."""
    if group < 2:
        return torch.zeros((), device=features.device)
    inside = features.reshape(-1, group, features.shape[-1])  # [groups, group, D]
    apart: Tensor = torch.cdist(inside, inside)
    return apart.sum() / (len(inside) * group * (group - 1))


def judged(reward: Any, x0: Tensor, cond: Cond, group: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The rewards of samples, [B], and what is to be logged of them."""
    given: Tensor = reward(x0, cond)
    spread = diversity(reward.features(x0), group)
    logs = {"reward": given.mean(), "reward_std": given.std(correction=0), "diversity": spread}
    logs |= {"sample_mean": x0.mean(), "sample_std": x0.std()}
    return given, {k: v.to(x0.device) for k, v in logs.items()}


def frozen(net: nn.Module) -> nn.Module:
    """A copy that is not trained."""
    return copy.deepcopy(net).requires_grad_(False)


@torch.no_grad()
def follow(copied: nn.Module, net: nn.Module, decay: float = 0.0) -> None:
    """copied <- decay copied + (1 - decay) net; buffers are copied."""
    theirs = unwrap(net)
    for old, new in zip(copied.parameters(), theirs.parameters(), strict=True):
        old.lerp_(new, 1 - decay) if decay else old.copy_(new)
    for ours, buffer in zip(copied.buffers(), theirs.buffers(), strict=True):
        ours.copy_(buffer)


@contextmanager
def evaluating(*denoisers: Any) -> Iterator[None]:
    """Inside, networks are without dropout: a policy must give what it did the likelihood with which it did it."""
    nets = [f.net for f in denoisers if isinstance(f, Denoiser)]
    was = [net.training for net in nets]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for net, training in zip(nets, was, strict=True):
            net.train(training)


def output_as(f: Denoiser, other: DenoiserLike, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """What `other` says at x_t, as an output of f's network."""
    if isinstance(other, Denoiser) and (other.path, other.parameterisation) == (f.path, f.parameterisation):
        return other.output(x, t, cond)
    return f.parameterisation.target(f.path, *other(x, t, cond), t)


class Transition(NamedTuple):
    """One step of a policy: N(mean, std^2), mean shaped as x, std and the diffusion g = std / sqrt(t - s) as t."""

    mean: Tensor
    std: Tensor
    g: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """The mean over dimensions of log N(x; mean, std^2), [B]. In float32 at least: bfloat16 overflows in exp."""
        mean, std = self.mean.float(), expand(self.std, self.mean.float())
        log = -((x - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * torch.log(torch.tensor(2 * torch.pi))
        return log.flatten(1).mean(1)


def transition(
    path: NoisePath, x: Tensor, pred: Prediction, t: Tensor, s: Tensor, level: float, first: Tensor
) -> Transition:
    """Euler-Maruyama from t to s of dx = (u + g^2 eps / (2 sigma)) dt + g dW, which has the ODE's marginals.

    g^2 = level^2 sigma (sigma' alpha - sigma alpha') / alpha, -level^2 sigma^2 times the slope of log alpha / sigma: on
    flow it is Flow-GRPO's level^2 t / (1 - t), and level = sqrt(2) is DDPM's time reversal on any path. Where alpha = 0
    it would be infinite, and `first`, the time after, lends its alpha. t, s: 0-d or [B], s < t.
    """
    alpha, sigma = path.alpha(t), path.sigma(t)
    divisor = torch.where(alpha < NO_DATA, path.alpha(first), alpha)
    square = level**2 * sigma * (path.dsigma(t) * alpha - sigma * path.dalpha(t)) / divisor
    drift = square * (t - s) / (2 * sigma)
    mean = path.advance(x, pred, t, s) - expand(drift, x) * pred.eps
    return Transition(mean, (square * (t - s)).sqrt(), square.sqrt())


@torch.no_grad()
def walk(f: DenoiserLike, x: Tensor, times: Tensor, cond: Cond, noise: Noise, level: float) -> list[Tensor]:
    """The policy's samples at all `times` from x at times[0]; the last step, to t = 0, is the prediction of x0."""
    points = [x]
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        pred = f(x, t, cond)
        if s == 0:
            x = pred.x0
        else:
            step = transition(f.path, x, pred, t, s, level, times[1])
            x = step.mean + expand(step.std, x) * noise.normal(i, x.shape[1:]).to(x)
        points.append(x)
    return points

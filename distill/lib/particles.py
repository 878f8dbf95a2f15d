"""Score distillation: whatever is rendered differentiably, drawn to where a trained score is high.

SDS (DreamFusion, Poole et al. 2022), VSD (ProlificDreamer, Wang et al. 2023), and VSD over particles that are vector
drawings, which SVGDreamer (Xing et al. 2023) calls VPSD, without its reward. There is no data set and no student: the
parameters of the renderings themselves are updated.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from gen.diffusion.contracts import Guide
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.noise import Noise, training_noise
from gen.diffusion.path import NoisePath, expand
from gen.diffusion.times import Levels, Times
from gen.diffusion.weighting import UniformWeighting
from gen.distillers.lib.score import denoising_losses, fold_in, surrogate_losses
from gen.distillers.lib.teacher import guided_teacher

__all__ = ["Critic", "LearnedCritic", "distil_particles", "score_distillation_gradient"]


class Critic(Protocol):
    """The score of the renderings themselves, which VSD subtracts; SDS has none."""

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Any:
        """Return the Prediction of the renderings' own law.

        Args:
            x: x_t [B, ...].
            t: times [B].
            cond: their condition.
        """
        ...

    def fit(self, x: Tensor, cond: Cond, noise: Noise) -> None:
        """Learn from renderings.

        Args:
            x: renderings [B, ...], without gradient.
            cond: their condition.
            noise: of this step.
        """
        ...


class LearnedCritic:
    """A copy of the teacher, trained on the renderings, one update a step; unguided, as published.

    Args:
        teacher: whose network is copied.
        rate: learning rate of its Adam.
        times: density of the times of its denoising loss.
    """

    def __init__(self, teacher: Denoiser, rate: float = 1e-4, times: Times | None = None):
        net = copy.deepcopy(teacher.net).train().requires_grad_(True)
        self.denoiser = Denoiser(net, teacher.path, teacher.parameterisation)
        self.times = times or Levels()
        self.optim = torch.optim.Adam([p for p in net.parameters() if p.is_floating_point()], lr=rate)

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Any:
        return self.denoiser(x, t, cond)

    def fit(self, x: Tensor, cond: Cond, noise: Noise) -> None:
        """Take one step of the denoising loss on renderings x [B, ...]."""
        t = self.times.at(noise.uniform("t"), self.denoiser.path).to(x.device)
        eps = noise.normal("eps", x.shape[1:]).to(x)
        self.optim.zero_grad()
        denoising_losses(self.denoiser, x, eps, t, cond, UniformWeighting()).mean().backward()
        self.optim.step()


def score_distillation_gradient(path: NoisePath, x: Tensor, t: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """Return w(t) (eps_real - eps_fake) at x_t with w = sigma^2, the gradient in renderings x [B, ...].

    As eps = (x_t - alpha x0) / sigma, that is sigma alpha (fake - real). SDS is fake = x, the denoiser of a rendering
    that is all there is: then eps_fake is the noise itself.

    Args:
        path: the noise path.
        x: renderings [B, ...].
        t: times [B].
        fake, real: x0 of the critic and of the teacher at x_t.
    """
    return (expand(path.sigma(t) * path.alpha(t), x) * (fake - real)).detach()


def distil_particles(
    render: Callable[[], Tensor],
    optim: torch.optim.Optimizer,
    teacher: DenoiserLike,
    cond: Cond,
    *,
    critic: Critic | None = None,
    guide: Guide | None = None,
    times: Times | None = None,
    steps: int = 1000,
    seed: int = 0,
    watch: Callable[[int, Tensor], None] | None = None,
) -> None:
    """Update what an optimiser holds until its renderings are probable under a teacher.

    Args:
        render: from the parameters to pictures [B, ...], one of each particle.
        optim: of the parameters.
        teacher: frozen.
        cond: the condition of each particle.
        critic: of VSD: spreads the particles over the teacher's law; None for SDS, which leads each to a mode.
        guide: on the teacher; None for none.
        times: density of the noise's times; None for the middle 96 % of the levels, as published.
        steps: updates.
        seed: of all noise.
        watch: called after each update with its number and the renderings before it.
    """
    path = teacher.path
    guided, times = guided_teacher(teacher, path, guide), times or Levels(0.02, 0.98)
    for step in range(steps):
        x = render()
        noise = training_noise(seed, step, range(len(x)))
        t = times.at(noise.uniform("t"), path).to(x.device)
        with torch.no_grad():
            x_t = path.mix(x, noise.normal("eps", x.shape[1:]).to(x), t)
            real = guided(x_t, t, cond).x0
            fake = x if critic is None else critic(x_t, t, cond).x0
        gradient = score_distillation_gradient(path, x, t, fake, real)
        optim.zero_grad()
        (surrogate_losses(x, gradient) * x[0].numel()).sum().backward()
        optim.step()
        if critic is not None:
            critic.fit(x.detach(), cond, fold_in(noise, "critic"))
        if watch is not None:
            watch(step, x.detach())

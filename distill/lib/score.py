"""Distillers of scores: a few-step student's samples, the score that is learned of them, and gradients to match it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid, Guide
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.noise import Noise, derive
from gen.diffusion.path import NoisePath, expand
from gen.diffusion.sampling import integrate
from gen.diffusion.times import Levels, Natural, Times
from gen.diffusion.weighting import UniformWeighting, Weighting
from gen.distillers.lib.teacher import require_teacher
from gen.distillers.lib.times import draw_times
from gen.samplers.solvers.renoise import Renoise
from gen.training.distillation import Distiller
from gen.training.lora import adapted_copy
from gen.training.objectives import Batch, Roles
from gen.training.objectives.denoise import check_state
from gen.training.run import Run, Sampler

__all__ = [
    "Scale",
    "ScoreDistillation",
    "backward_simulate",
    "check_same_terms",
    "denoising_losses",
    "dmd_gradient",
    "energy_distance",
    "fold_in",
    "generate",
    "sample_stats",
    "sample_student",
    "surrogate_losses",
]

Scale = Literal["error", "kl"]


@dataclass(frozen=True)
class ScoreDistillation(Distiller):
    """The common part of distillers that learn the score of the student's own samples, in the role "fake".

    Attributes:
        steps: steps of the student's sampler, at least 1; with more than one it is trained on its own trajectories.
        grid: the sampler's times.
        times: density of the times at which scores are compared; as in DMD2 the middle 96 % of the noise levels.
        critic_steps: updates of the fake score for each of the student, at least 1.
        critic_times, weighting: of the fake score's denoising loss; EDM's weighting is what is published.
        critic_rate: factor on the learning rate for the fake score and a discriminator, positive.
        guide: on the teacher; None for none.
    """

    steps: int = 1
    grid: Grid = part("samplers.grids", default="natural")
    times: Times = part("diffusion.times", default=Levels(0.02, 0.98))
    critic_steps: int = 5
    critic_times: Times = part("diffusion.times", default=Natural())
    weighting: Weighting = part("diffusion.weighting", default=UniformWeighting())
    critic_rate: float = 1.0
    guide: Guide | None = part("samplers.guides", default=None)

    def __post_init__(self) -> None:
        check_fields(self, steps="[1, inf)", critic_steps="[1, inf)", critic_rate="(0, inf)")

    def student(self, run: Run, teacher: Path, folder: Path) -> Run:
        """Return the teacher's run from its weights at a tenth of its learning rate, sampled in `steps` steps."""
        optim, sampler = replace(run.optim, lr=run.optim.lr / 10), Sampler(Renoise(), steps=self.steps, grid=self.grid)
        return replace(run, objective=self, teacher=str(teacher), init=str(teacher), optim=optim, sampler=sampler)

    def roles(self, net: nn.Module, teacher: DenoiserLike | None) -> dict[str, nn.Module]:
        """Return the student, and as fake score a trainable copy of the teacher's network, or of net if it has none.

        Where the student has adapters, so has the fake score, and the weights that they belong to are shared.
        """
        teacher = require_teacher(type(self).__name__, teacher)
        check_state(net, type(self).__name__)
        if getattr(net, "adapted", False):
            return {"net": net, "fake": adapted_copy(net)}
        source = teacher.net if isinstance(teacher, Denoiser) else net
        return {"net": net, "fake": copy.deepcopy(source).train().requires_grad_(True)}

    @property
    def rates(self) -> dict[str, float]:
        return {"fake": self.critic_rate, "disc": self.critic_rate}

    def denoising_loss(self, roles: Roles, batch: Batch, y: Tensor, name: str) -> Tensor:
        """Return the fake score's denoising loss on samples y, with the times and noise of that name."""
        fake: Denoiser = roles["fake"]
        t = draw_times(self.critic_times, batch, f"{name}.t", fake.path)
        return denoising_losses(fake, y, batch.normal(f"{name}.eps"), t, batch.cond, self.weighting).mean()

    def validate(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the energy distance between the student's samples and held-out data, on fixed noise."""
        return energy_distance(self.student_samples(roles, batch), batch.x)

    def validate_all(self, roles: Roles, batches: Sequence[Batch]) -> float:
        y = torch.cat([self.student_samples(roles, batch) for batch in batches])
        return float(energy_distance(y, torch.cat([batch.x for batch in batches])))

    def student_samples(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the student's samples on the batch's noise."""
        f = roles["net"]
        return sample_student(f, batch, fold_in(batch.noise, "student"), self.grid.times(f.path, self.steps))


def check_same_terms(f: Denoiser, teacher: DenoiserLike) -> None:
    """Raise UserError unless student and teacher have one path and one parameterisation.

    Args:
        f: the student.
        teacher: the teacher.
    """
    ours = f.path, f.parameterisation
    theirs = teacher.path, getattr(teacher, "parameterisation", f.parameterisation)
    if ours != theirs:
        raise UserError(
            f"the student has path {ours[0]} and parameterisation {ours[1]}, its teacher {theirs[0]} and {theirs[1]}: "
            "scores are compared on one path only, so leave path and parameterisation as the teacher has them"
        )


# -- the student's samples ---------------------------------------------------------------------------------------------


def fold_in(noise: Noise, name: str) -> Noise:
    """Return the noise of one part of a step, independent of other parts' draws of equal names.

    Args:
        noise: of the step.
        name: of the part.
    """
    return replace(noise, seeds=tuple(derive(seed, name) for seed in noise.seeds))


def backward_simulate(f: DenoiserLike, batch: Batch, noise: Noise, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Return inputs of a student at steps of its own sampler (DMD2, Yin et al. 2024, section 4.5).

    Each sample is at a step of its own, drawn uniformly, at the state to which the student's own sampling led; no
    gradient goes through the steps before.

    Args:
        f: the student.
        batch: the condition, and the shape of samples.
        noise: of the start and of the steps.
        grid: the sampler's times [N + 1], falling to 0.

    Returns:
        x_t [B, ...] and t [B].
    """
    unit = noise.normal("start", batch.x.shape[1:]).to(batch.x)
    states = [f.path.start(unit, grid[0])]
    if len(grid) > 2:
        with torch.no_grad():
            integrate(
                f, states[0], grid[:-1], Renoise(), cond=batch.cond, noise=noise,
                watch=lambda i, t, x: states.append(x),
            )  # fmt: skip
    k = noise.integers("rung", len(states))
    x = torch.stack(states)[k.to(unit.device), torch.arange(len(unit), device=unit.device)]
    return x, grid[k].to(unit.device)


@torch.no_grad()
def generate(f: DenoiserLike, batch: Batch, noise: Noise, grid: Tensor) -> Tensor:
    """Return samples [B, ...] of a student without gradient, each from a random step of its sampler.

    Args:
        f, batch, noise, grid: as of `backward_simulate`.
    """
    x, t = backward_simulate(f, batch, noise, grid)
    return f(x, t, batch.cond).x0


@torch.no_grad()
def sample_student(f: DenoiserLike, batch: Batch, noise: Noise, grid: Tensor) -> Tensor:
    """Return samples [B, ...] of a student without gradient, from the whole sampling loop.

    Args:
        f, batch, noise, grid: as of `backward_simulate`.
    """
    unit = noise.normal("start", batch.x.shape[1:]).to(batch.x)
    return integrate(f, f.path.start(unit, grid[0]), grid, Renoise(), cond=batch.cond, noise=noise)


# -- losses ------------------------------------------------------------------------------------------------------------


def denoising_losses(f: Denoiser, y: Tensor, eps: Tensor, t: Tensor, cond: Cond, weighting: Weighting) -> Tensor:
    """Return the weighted denoising loss of each sample, [B].

    Args:
        f: the denoiser that is trained.
        y, eps: samples and noise [B, ...].
        t: times [B].
        cond: the condition.
        weighting: of the squared error of the network's output.
    """
    out = f.output(f.path.mix(y, eps, t), t, cond)
    error = (out - f.parameterisation.target(f.path, y, eps, t)) ** 2
    return error.flatten(1).mean(1) * weighting.weight(f.path, f.parameterisation, t).to(error)


def dmd_gradient(path: NoisePath, y: Tensor, t: Tensor, fake: Tensor, real: Tensor, scale: Scale) -> Tensor:
    """Return the gradient of the distribution-matching loss with respect to samples y, [B, ...].

    The difference of scores is alpha (fake - real) / sigma^2, and dx_t / dy = alpha.

    Args:
        path: the noise path.
        y: the student's samples [B, ...].
        t: times [B] at which they were noised.
        fake, real: x0 of the fake score's denoiser and of the teacher at the noised x_t.
        scale: "kl" keeps both factors: the gradient of KL(q_t || p_t); "error" divides by the teacher's mean error on
            the sample instead (DMD2's code).
    """
    if scale == "kl":
        factor = expand((path.alpha(t) / path.sigma(t)) ** 2, y)
    else:
        factor = 1 / expand((y - real).abs().flatten(1).mean(1).clamp(min=1e-8), y)
    return (factor * (fake - real)).detach()


def surrogate_losses(y: Tensor, gradient: Tensor) -> Tensor:
    """Return losses [B] whose gradient in y is `gradient` over the number of elements.

    Args:
        y, gradient: [B, ...].
    """
    return 0.5 * ((y - (y - gradient).detach()) ** 2).flatten(1).mean(1)


# -- logs --------------------------------------------------------------------------------------------------------------


def sample_stats(y: Tensor, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
    """Return logs of a student's step: drifting brightness shows first in the samples' mean and deviation.

    Args:
        y: samples [B, ...].
        fake, real: as of `dmd_gradient`; how far they are apart, and the teacher's error on the samples, are logged.
    """
    return {
        "sample_mean": y.mean(),
        "sample_std": y.std(),
        "score_gap": (fake - real).abs().mean(),
        "teacher_error": (y - real).abs().mean(),
    }


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return 2 E|x - y| - E|x - x'| - E|y - y'|, without bias; 0 for equal distributions (Szekely & Rizzo 2013).

    The validation loss of distillers of scores, whose own losses are no signal of quality.

    Args:
        x, y: samples [N, ...] and [M, ...].
    """
    x, y = x.flatten(1), y.flatten(1)

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / max(1, len(z) * (len(z) - 1))

    return 2 * torch.cdist(x, y).mean() - within(x) - within(y)

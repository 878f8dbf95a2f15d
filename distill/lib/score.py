"""What distillers of scores share: a few-step student's samples, its fake score's loss, and how both are watched."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike
from gen.diffusion.noise import Noise, derive
from gen.diffusion.path import NoisePath, expand
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import Tap
from gen.distillers.lib.teacher import require_teacher
from gen.samplers.solvers.renoise import Renoise
from gen.training.objectives import Batch
from gen.training.objectives.denoise import check_state
from gen.training.run import Run, Sampler

__all__ = [
    "Scale",
    "check_pair",
    "check_settings",
    "denoising_losses",
    "direction",
    "energy_distance",
    "fake_score",
    "frozen",
    "generate",
    "named",
    "rung",
    "student_run",
    "surrogate",
    "times_of",
    "validation",
    "watched",
]

Scale = Literal["error", "kl"]


def student_run(run: Run, teacher: Path, objective: Any) -> Run:
    """A student of teacher's weights and a tenth of its learning rate, sampled in `objective.steps` re-noised steps."""
    sampler = Sampler(Renoise(), steps=objective.steps, grid=objective.grid)
    optim = replace(run.optim, lr=run.optim.lr / 10)
    return replace(run, objective=objective, teacher=str(teacher), init=str(teacher), optim=optim, sampler=sampler)


def fake_score(net: nn.Module, teacher: DenoiserLike | None, owner: str) -> nn.Module:
    """The network that learns the student's own score: a trainable copy of the teacher's, if it has one, else of net.

    Raises UserError if there is no teacher, and for states that are more than an image.
    """
    teacher = require_teacher(owner, teacher)
    check_state(net, owner)
    source = teacher.net if isinstance(teacher, Denoiser) else net
    return copy.deepcopy(source).train().requires_grad_(True)


def check_pair(f: Denoiser, teacher: DenoiserLike) -> None:
    """Raises UserError unless student and teacher speak of the same x_t in the same words."""
    ours, theirs = (
        (f.path, f.parameterisation),
        (teacher.path, getattr(teacher, "parameterisation", f.parameterisation)),
    )
    if ours != theirs:
        raise UserError(
            f"the student has path {ours[0]} and parameterisation {ours[1]}, its teacher {theirs[0]} and {theirs[1]}: "
            "scores are compared on one path only, so leave path and parameterisation as the teacher has them"
        )


@contextmanager
def frozen(*nets: nn.Module) -> Iterator[None]:
    """Inside, what is computed sends gradients through these networks to their inputs, but none to their weights."""
    held = [p for net in nets for p in net.parameters() if p.requires_grad]
    try:
        for p in held:
            p.requires_grad_(False)
        yield
    finally:
        for p in held:
            p.requires_grad_(True)


def check_settings(objective: Any, **least: int) -> None:
    """Raises UserError for a sampler of no steps and for rates that are not positive; builds what is named."""
    name = type(objective).__name__
    for key in ("grid", "guide"):
        given = getattr(objective, key, None)
        object.__setattr__(objective, key, given if given is None else build(f"samplers.{key}s", given))
    for key, low in {"steps": 1, "hidden": 1, **least}.items():
        if getattr(objective, key, low) < low:
            raise UserError(f"{name}: {key} = {getattr(objective, key)}; it must be at least {low}")
    if not objective.critic_rate > 0:
        raise UserError(f"{name}: critic_rate = {objective.critic_rate}; it must be positive")


# -- the student's samples ---------------------------------------------------------------------------------------------


def named(noise: Noise, name: str) -> Noise:
    """The noise of one part of a step: what it draws is independent of other parts' draws of equal names."""
    return replace(noise, seeds=tuple(derive(seed, name) for seed in noise.seeds))


def rung(f: DenoiserLike, batch: Batch, noise: Noise, grid: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs [B, ...] of a student at steps of its own sampler, and their times [B].

    grid: its N + 1 falling times. Each sample is at a step of its own, as likely one as another, where the student's
    own walk led it: backward simulation (DMD2, Yin et al. 2024, section 4.5), with no gradient through the past.
    """
    unit = noise.normal("start", batch.x.shape[1:]).to(batch.x)
    states = [f.path.start(unit, grid[0])]
    if len(grid) > 2:
        with torch.no_grad():
            integrate(
                f,
                states[0],
                grid[:-1],
                Renoise(),
                cond=batch.cond,
                noise=noise,
                watch=lambda i, t, x: states.append(x),
            )
    k = noise.integers("rung", len(states))
    x = torch.stack(states)[k.to(unit.device), torch.arange(len(unit), device=unit.device)]
    return x, grid[k].to(unit.device)


@torch.no_grad()
def generate(f: DenoiserLike, batch: Batch, noise: Noise, grid: Tensor, whole: bool = False) -> Tensor:
    """Samples [B, ...] of a student without gradient: at a step drawn by `rung`, or at the end of the whole walk."""
    if not whole:
        x, t = rung(f, batch, noise, grid)
        return f(x, t, batch.cond).x0
    unit = noise.normal("start", batch.x.shape[1:]).to(batch.x)
    return integrate(f, f.path.start(unit, grid[0]), grid, Renoise(), cond=batch.cond, noise=noise)


# -- losses ------------------------------------------------------------------------------------------------------------


def denoising_losses(
    f: Denoiser, y: Tensor, eps: Tensor, t: Tensor, cond: Cond, weighting: Any, tap: Tap | None = None
) -> Tensor:
    """The weighted denoising loss of samples y at times t [B], one for each: [B]."""
    out = f.output(f.path.mix(y, eps, t), t, cond, tap=tap)
    error = (out - f.parameterisation.target(f.path, y, eps, t)) ** 2
    weight: Tensor = weighting.weight(f.path, f.parameterisation, t)
    return error.flatten(1).mean(1) * weight.to(error)


def direction(path: NoisePath, y: Tensor, t: Tensor, fake: Tensor, real: Tensor, scale: Scale) -> Tensor:
    """What a student's sample y is to be less of, [B, ...], from both denoisers' x0 at its noised x_t.

    The difference of scores is alpha (fake - real) / sigma^2, and dx_t / dy = alpha. scale "kl" keeps both: the
    gradient of KL(q_t || p_t); "error" divides by the teacher's mean error on the sample instead (DMD2's code).
    """
    if scale == "kl":
        factor = expand((path.alpha(t) / path.sigma(t)) ** 2, y)
    else:
        factor = 1 / expand((y - real).abs().flatten(1).mean(1).clamp(min=1e-8), y)
    return (factor * (fake - real)).detach()


def surrogate(y: Tensor, step: Tensor) -> Tensor:
    """A loss of each sample, [B], whose gradient in y is `step` over the number of elements."""
    return 0.5 * ((y - (y - step).detach()) ** 2).flatten(1).mean(1)


# -- what is watched ---------------------------------------------------------------------------------------------------


def watched(y: Tensor, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
    """Logs of a student's step: the samples' mean and deviation (drifting brightness shows first there), how far the
    two scores' denoisers are apart, and the teacher's error on the samples."""
    return {
        "sample_mean": y.mean(),
        "sample_std": y.std(),
        "score_gap": (fake - real).abs().mean(),
        "teacher_error": (y - real).abs().mean(),
    }


def times_of(times: Any, batch: Batch, name: str, path: NoisePath) -> Tensor:
    """A time for each sample of the batch, [B], of a density's own draw."""
    t: Tensor = times.at(batch.noise.uniform(name), path)
    return t.to(batch.x.device)


@torch.no_grad()
def validation(f: DenoiserLike, batch: Batch, grid: Any, steps: int) -> Tensor:
    """The energy distance between a student's samples and the batch's data, on fixed noise."""
    times = grid.times(f.path, steps)
    return energy_distance(generate(f, batch, named(batch.noise, "student"), times, whole=True), batch.x)


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'| of two samples [N, ...] and [M, ...], without bias; 0 for equal laws.

    The validation loss of distillers of scores, whose own losses are no signal of quality (Szekely & Rizzo 2013).
    """
    x, y = x.flatten(1), y.flatten(1)

    def within(z: Tensor) -> Tensor:
        return torch.cdist(z, z).sum() / max(1, len(z) * (len(z) - 1))

    return 2 * torch.cdist(x, y).mean() - within(x) - within(y)

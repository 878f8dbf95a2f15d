"""What consistency models share: the consistency function, its boundary condition, its targets and its distances.

The consistency function f(x, t) is the x0 of the prediction, and f(x, 0) = x must hold. A parameterisation that says
x0 = (b x - sigma out) / det meets it by itself where sigma / det vanishes with sigma: EDM's does on every path (on
EDM's own its c_skip and c_out are those of the paper), so do flow (x0 = x - t v on the flow path), v, eps and score. A
network that says x0 itself does not, and is refused. At t = 0 nothing is evaluated: x is the answer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.parameterisation import Parameterisation
from gen.diffusion.path import NoisePath, expand
from gen.samplers.grids.coarse import Coarse
from gen.training.ema import EMA
from gen.training.objectives import Batch
from gen.training.run import Sampler

__all__ = [
    "Decay",
    "check_boundary",
    "closer",
    "consistent",
    "few_steps",
    "frozen",
    "level",
    "ode_step",
    "pair_losses",
    "pseudo_huber",
    "same_dropout",
    "seen",
    "target",
    "time_of",
]

TOP = 1e6  # sigma / alpha beyond which all is noise: it is infinite where alpha = 0
NEAR = 1e-8  # a time, as a fraction of t1, that is as good as 0


def check_boundary(path: NoisePath, parameterisation: Parameterisation, owner: str) -> None:
    """Raises UserError unless f(x, 0) = x, whatever the network says."""
    t = torch.tensor(NEAR * path.t1, dtype=torch.float64)
    if not abs(float(path.sigma(t) / parameterisation.det(path, t))) < 0.1:
        raise UserError(
            f"{owner} needs f(x, 0) = x, which {type(parameterisation).__name__} prediction does not ensure: take "
            "edm_precond, velocity, v or eps"
        )


def consistent(f: DenoiserLike, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """f(x, t) [B, ...] at times [B]: x0, and x itself where t = 0."""
    clean = t == 0
    if bool(clean.all()):
        return x
    x0 = f(x, torch.where(clean, torch.full_like(t, f.path.t1), t), cond).x0
    return torch.where(clean.reshape(-1, *[1] * (x.ndim - 1)), x, x0)


def target(f: DenoiserLike, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """f(x, t) without gradient, and with the dropout that the next evaluation will have."""
    with torch.no_grad(), same_dropout(x):
        return consistent(f, x, t, cond)


@contextmanager
def same_dropout(x: Tensor) -> Iterator[None]:
    """What is drawn inside is drawn again after it."""
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        yield


@torch.no_grad()
def ode_step(teacher: DenoiserLike, x: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
    """x [B, ...] along the teacher's probability-flow ODE from t [B] to s [B] by Heun's rule; Euler's where s = 0."""
    path = teacher.path
    here = teacher(x, t, cond)
    euler, last = path.advance(x, here, t, s), s == 0
    if bool(last.all()):
        return euler
    there = teacher(euler, torch.where(last, t, s), cond)
    da, ds = ((c(s) - c(t)) / 2 for c in (path.alpha, path.sigma))
    heun = euler + expand(da, x) * (there.x0 - here.x0) + expand(ds, x) * (there.eps - here.eps)
    return torch.where(last.reshape(-1, *[1] * (x.ndim - 1)), euler, heun)


def level(path: NoisePath, t: Tensor) -> Tensor:
    """sigma / alpha [B] at times [B], at most TOP: what EDM calls sigma, on any path."""
    return (path.sigma(t) / path.alpha(t)).clamp(max=TOP)


def time_of(path: NoisePath, sigma: Tensor) -> Tensor:
    """The times [B] of levels sigma / alpha [B]; 0 for level 0."""
    some = sigma > 0
    t = path.t_from_lambda(-torch.where(some, sigma, torch.ones_like(sigma)).log()).clamp(max=path.t1)
    return torch.where(some, t, torch.zeros_like(t))


def closer(path: NoisePath, t: Tensor, gap: float, sharpness: float, slope: float) -> Tensor:
    """ECT's r [B] below times t [B]: sigma_r = max(0, 1 - gap (1 + sharpness sigmoid(-slope sigma_t))) sigma_t."""
    sigma = level(path, t)
    return time_of(path, (1 - gap * (1 + sharpness * torch.sigmoid(-slope * sigma))).clamp(min=0) * sigma)


def pair_losses(
    f: DenoiserLike, teaches: DenoiserLike, batch: Batch, cond: Cond, t: Tensor, r: Tensor, huber: float
) -> tuple[Tensor, Tensor, Tensor]:
    """|f(x_t, t) - sg teaches(x_r, r)| / (sigma_t - sigma_r) of each sample [B]; f(x_t, t); sigma_r / sigma_t [B]."""
    eps, path = batch.normal("eps"), f.path
    goal = target(teaches, path.mix(batch.x, eps, r), r, cond)
    x0 = consistent(f, path.mix(batch.x, eps, t), t, cond)
    high, low = level(path, t), level(path, r)
    return pseudo_huber(x0, goal, huber) / (high - low).to(x0), x0, low / high


def pseudo_huber(a: Tensor, b: Tensor, huber: float) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c, [B], with c = huber sqrt(d), d the number of elements (iCT, Song & Dhariwal 2024).

    0 gives the norm |a - b|, ECT's default. Between images it acts as the mean square does, but weighted by the sample;
    between single numbers it is the absolute difference, whose best answer is a median: no flow map.
    """
    away = (a - b).flatten(1)
    if huber == 0:
        return torch.linalg.vector_norm(away, dim=1)  # its gradient at 0 is 0
    c = huber * away.shape[1] ** 0.5
    return (away.square().sum(1) + c**2).sqrt() - c


def seen(x0: Tensor) -> dict[str, Tensor]:
    """Mean and deviation of what the student makes: brightness and contrast, which the loss does not show."""
    return {"x0_mean": x0.detach().mean(), "x0_std": x0.detach().std()}


@dataclass(frozen=True)
class Decay(EMA):
    """The plain exponential average of a target network: no warm-up."""

    decay: float = 0.95

    def decay_at(self, update: int) -> float:
        return self.decay


def frozen(net: nn.Module) -> nn.Module:
    """A copy that no loss trains: as a role it is saved and resumed."""
    return copy.deepcopy(net).requires_grad_(False)


def few_steps(grid: Any, of: int) -> Sampler:
    """One step of the consistency sampler; more take every k-th time of the grid (CM, algorithm 1)."""
    return Sampler("renoise", steps=1, grid=Coarse(grid, of))

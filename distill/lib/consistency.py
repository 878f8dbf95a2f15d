"""The consistency function, its boundary condition, noise levels, next times, losses and sampler.

The consistency function f(x, t) is the x0 of the prediction, and f(x, 0) = x must hold. A parameterisation with
x0 = (b x - sigma out) / det meets it by itself where sigma / det vanishes with sigma: EDM's does on every path (on
EDM's own its c_skip and c_out are those of the paper), so do velocity (x0 = x - t v on the flow path), v, eps and
score. A network that predicts x0 itself does not, and is refused. At t = 0 nothing is evaluated: x is the answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.parameterisation import Parameterisation
from gen.diffusion.path import NoisePath, expand
from gen.distillers.lib.networks import forked_rng
from gen.training.objectives import Batch

__all__ = [
    "check_boundary",
    "consistency_fn",
    "consistency_losses",
    "consistency_target",
    "ect_next_time",
    "heun_step",
    "output_stats",
    "pseudo_huber",
    "sigma_of_t",
    "t_of_sigma",
]

MAX_SIGMA = 1e6  # where alpha = 0, sigma / alpha is infinite
NEAR_ZERO = 1e-8  # a fraction of t1 that is as good as t = 0


def check_boundary(path: NoisePath, parameterisation: Parameterisation, owner: str) -> None:
    """Raise UserError unless f(x, 0) = x, whatever the network's output.

    Args:
        path, parameterisation: of the student.
        owner: name of the distiller, for the message.
    """
    t = torch.tensor(NEAR_ZERO * path.t1, dtype=torch.float64)
    if not abs(float(path.sigma(t) / parameterisation.det(path, t))) < 0.1:
        raise UserError(
            f"{owner} needs f(x, 0) = x, which {type(parameterisation).__name__} prediction does not ensure: take "
            "edm_precond, velocity, v or eps"
        )


def consistency_fn(f: DenoiserLike, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """Evaluate f(x, t) [B, ...]: the prediction's x0, and x itself where t = 0.

    Args:
        f: the denoiser.
        x, t: noisy samples [B, ...] and their times [B].
        cond: the condition.
    """
    clean = t == 0
    if bool(clean.all()):
        return x
    x0 = f(x, torch.where(clean, torch.full_like(t, f.path.t1), t), cond).x0
    return torch.where(expand(clean, x).bool(), x, x0)


def consistency_target(f: DenoiserLike, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """Evaluate f(x, t) without gradient, with the dropout masks that the next evaluation will have.

    Args:
        f, x, t, cond: as of `consistency_fn`.
    """
    with torch.no_grad(), forked_rng(x):
        return consistency_fn(f, x, t, cond)


@torch.no_grad()
def heun_step(teacher: DenoiserLike, x: Tensor, t: Tensor, s: Tensor, cond: Cond) -> Tensor:
    """Advance x along the teacher's probability-flow ODE by one step of Heun's rule, or Euler's where s = 0.

    Args:
        teacher: the denoiser.
        x: noisy samples [B, ...].
        t, s: times before and after the step, [B], s < t.
        cond: the condition.

    Returns:
        x at s, [B, ...].
    """
    path = teacher.path
    at_t = teacher(x, t, cond)
    euler, last = path.advance(x, at_t, t, s), s == 0
    if bool(last.all()):
        return euler
    at_s = teacher(euler, torch.where(last, t, s), cond)
    da, ds = ((c(s) - c(t)) / 2 for c in (path.alpha, path.sigma))
    heun = euler + expand(da, x) * (at_s.x0 - at_t.x0) + expand(ds, x) * (at_s.eps - at_t.eps)
    return torch.where(expand(last, x).bool(), euler, heun)


def sigma_of_t(path: NoisePath, t: Tensor) -> Tensor:
    """Return the noise level sigma / alpha, EDM's sigma on any path, at most 1e6.

    Args:
        path: the noise path.
        t: times [B].
    """
    return (path.sigma(t) / path.alpha(t)).clamp(max=MAX_SIGMA)


def t_of_sigma(path: NoisePath, sigma: Tensor) -> Tensor:
    """Return the times [B] at which the noise level sigma / alpha is `sigma`; inverse of `sigma_of_t`.

    Args:
        path: the noise path.
        sigma: noise levels [B]; 0 for t = 0.
    """
    some = sigma > 0
    t = path.t_from_lambda(-torch.where(some, sigma, torch.ones_like(sigma)).log()).clamp(max=path.t1)
    return torch.where(some, t, torch.zeros_like(t))


def ect_next_time(path: NoisePath, t: Tensor, gap: float, sharpness: float, slope: float) -> Tensor:
    """Return ECT's r [B] below t: sigma_r = max(0, 1 - gap (1 + k sigmoid(-b sigma_t))) sigma_t (Geng et al. 2024).

    Args:
        path: the noise path.
        t: times [B].
        gap: 1 / q^stage, the relative step at high levels.
        sharpness, slope: k and b, by how much and where steps are longer at low levels.
    """
    sigma = sigma_of_t(path, t)
    return t_of_sigma(path, (1 - gap * (1 + sharpness * torch.sigmoid(-slope * sigma))).clamp(min=0) * sigma)


def consistency_losses(
    f: DenoiserLike, target: DenoiserLike, batch: Batch, cond: Cond, t: Tensor, r: Tensor, huber: float
) -> tuple[Tensor, Tensor]:
    """Compare f(x_t, t) with the target's f(x_r, r), x_t and x_r of the same data, noise and dropout.

    Args:
        f: the student.
        target: the denoiser whose output is the target, without gradient; the student itself in iCT and ECT.
        batch: its "eps" is the noise.
        cond: the condition.
        t, r: times [B], r < t.
        huber: see `pseudo_huber`.

    Returns:
        The losses pseudo_huber / (sigma_t - sigma_r) [B], and f(x_t, t) [B, ...].
    """
    eps, path = batch.normal("eps"), f.path
    goal = consistency_target(target, path.mix(batch.x, eps, r), r, cond)
    x0 = consistency_fn(f, path.mix(batch.x, eps, t), t, cond)
    return pseudo_huber(x0, goal, huber) / (sigma_of_t(path, t) - sigma_of_t(path, r)).to(x0), x0


def pseudo_huber(a: Tensor, b: Tensor, huber: float) -> Tensor:
    """Compute sqrt(|a - b|^2 + c^2) - c of each sample, [B] (Song & Dhariwal 2024, eq. 7).

    Between images it acts as the mean square does, but weighted by the sample; between single numbers it is the
    absolute difference, whose minimiser is a median: no flow map.

    Args:
        a, b: samples [B, ...].
        huber: c / sqrt(d), d the number of elements; 0 for the norm |a - b|, ECT's default.
    """
    difference = (a - b).flatten(1)
    if huber == 0:
        return torch.linalg.vector_norm(difference, dim=1)  # its gradient at 0 is 0
    c = huber * difference.shape[1] ** 0.5
    return (difference.square().sum(1) + c**2).sqrt() - c


def output_stats(x0: Tensor) -> dict[str, Tensor]:
    """Return mean and deviation of a student's outputs: brightness and contrast, which the loss does not show.

    Args:
        x0: outputs [B, ...].
    """
    return {"x0_mean": x0.detach().mean(), "x0_std": x0.detach().std()}

"""Trajectories of a teacher's ODE: Euler's chords, inversion from data to noise, and how far from straight they are."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from gen.config.errors import NonFinite, UserError
from gen.diffusion.contracts import Solver
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.path import Prediction
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import chord
from gen.samplers.solvers.euler import Euler

__all__ = ["curvature", "euler_chord", "invert"]


@torch.no_grad()
def euler_chord(f: DenoiserLike, x: Tensor, times: list[Tensor], cond: Cond) -> Prediction:
    """Return the constant x0 and eps that lead from x to where Euler's steps (DDIM) lead.

    Args:
        f: the denoiser.
        x: states [B, ...] at times[0].
        times: falling times [B] of each sample.
        cond: the condition.
    """
    y = x
    for t, s in itertools.pairwise(times):
        y = f.path.mix(*f(y, t, cond), s)
    return chord(f.path, x, y, times[0], times[-1])


def invert(f: DenoiserLike, x: Tensor, times: Tensor, solver: Solver, cond: Cond | None = None) -> Tensor:
    """Integrate the ODE from data to noise, by the rule that otherwise goes down.

    Args:
        f: the denoiser.
        x: states [B, ...] at times[-1].
        times: falling times [N + 1].
        solver: the rule.
        cond: the condition.

    Returns:
        x at times[0], [B, ...].

    Raises:
        UserError: for a solver that does not follow the ODE.
        NonFinite: where it produces NaN or inf: rules in lam cannot start at t = 0.
    """
    if solver.order is None:
        raise UserError(f"{type(solver).__name__} does not follow the ODE, so it cannot be inverted; try heun")

    def denoise(x: Tensor, t: Tensor, *, s: Tensor | None = None) -> Prediction:
        return f(x, t, cond, s=s)

    def no_noise() -> Tensor:
        raise UserError(f"{type(solver).__name__} draws noise, and an inversion has none")

    state = solver.init()
    for t, s in itertools.pairwise(times.flip(0).double().cpu().unbind()):
        x, state = solver.step(denoise, f.path, x, t, s, state, no_noise)
    if not bool(torch.isfinite(x).all()):
        raise NonFinite(f"{type(solver).__name__} produced NaN or inf on its way from data to noise; try heun")
    return x


@torch.no_grad()
def curvature(
    f: DenoiserLike, x: Tensor, grid: Tensor, cond: Cond | None = None, solver: Solver | None = None
) -> float:
    """Measure how far the ODE's trajectories are from those that one Euler step follows exactly.

    In the coordinates x / alpha and sigma / alpha, on any path, the ODE is dy / dn = eps, and where eps stays one step
    is exact ("first-order", Rectified Diffusion, Wang et al. 2024). With finer grids it becomes that of the ODE itself.

    Args:
        f: the denoiser.
        x: states [B, ...] at grid[0].
        grid: falling times [N + 1].
        cond: the condition.
        solver: the rule; None for euler.

    Returns:
        The mean over dimensions and steps of (eps of the step's chord - eps of the whole trajectory's chord)^2.
    """
    points, times = [x], grid.double()
    integrate(f, x, times, solver or Euler(), cond=cond, watch=lambda i, t, x: points.append(x))
    overall = chord(f.path, points[0], points[-1], times[0], times[-1]).eps
    steps = zip(itertools.pairwise(points), itertools.pairwise(times), strict=True)
    return float(torch.stack([chord(f.path, a, b, t, s).eps - overall for (a, b), (t, s) in steps]).square().mean())

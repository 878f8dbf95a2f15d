"""Along a teacher's ODE: up it, from data to noise, and how far from straight its paths are."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from gen.config.errors import NonFinite, UserError
from gen.diffusion.contracts import Solver
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import chord
from gen.samplers.solvers.euler import Euler

__all__ = ["curvature", "invert"]


def invert(f: DenoiserLike, x: Tensor, times: Tensor, solver: Solver, cond: Cond | None = None) -> Tensor:
    """x [B, ...] at times[-1] carried up to times[0] by the rule that walks down; times [N + 1] fall.

    Raises UserError for a solver that does not follow the ODE, NonFinite where it leaves the real numbers: rules in
    lam cannot start at t = 0.
    """
    if solver.order is None:
        raise UserError(f"{type(solver).__name__} does not follow the ODE, so it cannot walk it backwards; try heun")

    def evaluate(x: Tensor, t: Tensor, *, s: Tensor | None = None) -> object:
        return f(x, t, cond, s=s)

    def silent() -> Tensor:
        raise UserError(f"{type(solver).__name__} draws noise, and an inversion has none")

    state = solver.init()
    for t, s in itertools.pairwise(times.flip(0).double().cpu().unbind()):
        x, state = solver.step(evaluate, f.path, x, t, s, state, silent)  # type: ignore[arg-type]
    if not bool(torch.isfinite(x).all()):
        raise NonFinite(f"{type(solver).__name__} left the real numbers on its way from data to noise; try heun")
    return x


@torch.no_grad()
def curvature(
    f: DenoiserLike, x: Tensor, grid: Tensor, cond: Cond | None = None, solver: Solver | None = None
) -> float:
    """How far the paths from x [B, ...] at grid[0] are from what one step can walk: the spread of the implied noise.

    In the coordinates x / alpha and sigma / alpha, on any path, the ODE is dy / dn = eps, and where eps stays one step
    is exact ("first-order", Rectified Diffusion, Wang et al. 2024). The mean over dimensions and steps of (eps of the
    step's chord - eps of the whole walk's chord)^2; with finer grids that of the ODE itself. Default solver: euler.
    """
    points, times = [x], grid.double()
    integrate(f, x, times, solver or Euler(), cond=cond, watch=lambda i, t, x: points.append(x))
    whole = chord(f.path, points[0], points[-1], times[0], times[-1]).eps
    steps = zip(itertools.pairwise(points), itertools.pairwise(times), strict=True)
    away = torch.stack([chord(f.path, a, b, t, s).eps - whole for (a, b), (t, s) in steps])
    return float((away**2).mean())

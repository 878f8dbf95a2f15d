"""The sampling loop: a solver walks a denoiser down a grid of times, from noise to data.

`integrate` is the whole loop. Pipeline.sample (gen/pipeline.py) adds seeds, batches, guides and pictures to it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gen.config.errors import NonFinite, UserError
from gen.diffusion.contracts import DenoiseFn, Solver
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise
from gen.diffusion.path import Prediction
from gen.diffusion.tap import BoundTap, Context, ContextualTap, Tap

__all__ = ["integrate"]


def integrate(
    f: DenoiserLike,
    x: Tensor,
    grid: Tensor | Sequence[float],
    solver: Solver,
    *,
    cond: Cond | None = None,
    noise: Noise | None = None,
    tap: Tap | ContextualTap | None = None,
    watch: Callable[[int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """x [B, ...] at grid[0] carried to grid[-1].

    grid: N + 1 falling times. noise: needed by stochastic solvers only. tap: seen by every evaluation; a ContextualTap
    one, such as a cache's run, is told each time which it is. watch(i, t, x) is called after every step.
    Raises UserError for a grid that does not fall, NonFinite if a step leaves the real numbers.
    """
    times = torch.as_tensor(grid, dtype=torch.float64, device="cpu")
    values = times.tolist()
    if times.ndim != 1 or len(values) < 2 or not all(t > s for t, s in itertools.pairwise(values)):
        raise UserError(f"a grid is at least 2 falling times, got {values}")
    path, steps, points = f.path, len(values) - 1, times.unbind()
    if not 0 <= values[-1] < values[0] <= path.t1:
        raise UserError(f"a grid lies in [0, {path.t1:g}], got {values[0]:g} .. {values[-1]:g}")

    i = 0  # the step that `draw` draws for

    def draw() -> Tensor:
        if noise is None:
            raise UserError(f"{type(solver).__name__} draws noise: give the loop a Noise")
        return noise.normal(i, x.shape[1:]).to(x)

    located = tap if tap is not None and isinstance(tap, ContextualTap) else None
    evaluate: DenoiseFn = f if cond is None and tap is None else partial(f, cond=cond, tap=tap)  # type: ignore[arg-type]
    state = solver.init()
    for i, (t, s) in enumerate(itertools.pairwise(points)):
        place = evaluate if located is None else _placed(f, cond, located, i, steps)
        x, state = solver.step(place, path, x, t, s, state, draw)
        if watch is not None:
            watch(i, s, x)
    # One sum tells, unless it overflows: only then is every number looked at.
    if not (math.isfinite(float(x.detach().sum())) or bool(torch.isfinite(x).all())):
        raise NonFinite(f"{type(solver).__name__} left the real numbers in {steps} steps from {values[0]:g}")
    return x


def _placed(f: DenoiserLike, cond: Cond | None, tap: ContextualTap, step: int, steps: int) -> DenoiseFn:
    """The evaluations of one step, for a tap that is to be told which each of them is."""
    stages = itertools.count()

    def evaluate(x: Tensor, t: Tensor, *, s: Tensor | None = None) -> Prediction:
        if t.ndim:
            raise UserError("a cache is told one time for the whole batch, and this solver gives each sample its own")
        context = Context(step, steps, next(stages), float(t))
        return f(x, t, cond, s=s, tap=BoundTap(tap, context))

    return evaluate

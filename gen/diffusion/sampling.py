"""The sampling loop: a solver takes x down a grid of times, from noise to data.

`integrate` is the whole loop. Pipeline.sample (gen/pipeline.py) adds seeds, batches, guides and pictures to it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gen.config.errors import NonFinite, UserError
from gen.diffusion.contracts import DenoiseFn, Solver
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise
from gen.diffusion.path import Prediction
from gen.diffusion.tap import BoundTap, Context, ContextualTap, PartialNetwork, Tap

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
    watch: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
) -> Tensor:
    """Integrate from grid[0] to grid[-1].

    Args:
        f: the denoiser, under its guide (gen.diffusion.composition).
        x: state at grid[0], [B, ...].
        grid: N + 1 falling times.
        solver: the rule of each step.
        cond: tensors [B, ...] for f.
        noise: the batch's randomness; needed by stochastic solvers only.
        tap: passed to every evaluation; a ContextualTap, such as a cache's session, is bound to its context each time.
        watch: called after every step with its index, its end's time and x; a tensor that it returns becomes x.

    Returns:
        x at grid[-1].

    Raises:
        UserError: for a grid that does not fall, for a solver that draws without a noise, and for a ContextualTap and a
            network that calls no tap.
        NonFinite: if a step produced NaN or inf.
    """
    times = torch.as_tensor(grid, dtype=torch.float64, device="cpu")
    values = times.tolist()
    if times.ndim != 1 or len(values) < 2 or not all(t > s for t, s in itertools.pairwise(values)):
        raise UserError(f"a grid is at least 2 falling times, got {values}")
    path, steps, points = f.path, len(values) - 1, times.unbind()
    if not 0 <= values[-1] < values[0] <= path.t1:
        raise UserError(f"a grid lies in [0, {path.t1:g}], got {values[0]:g} .. {values[-1]:g}")
    knots = {knot for knot in path.knots if values[-1] <= knot < values[0]}
    if missing := knots - set(values):
        raise UserError(f"the grid lacks {max(missing):g}, where a stage of the path begins: take the grid phases")

    i = 0  # the step of `draw`

    def draw() -> Tensor:
        if path.knots:
            name = type(solver).__name__
            raise UserError(f"{name} draws noise, and the stages of this path have no one noise level: take a rule for "
                            "the ODE, such as euler or heun")  # fmt: skip
        if noise is None:
            raise UserError(f"{type(solver).__name__} draws noise: give the loop a Noise")
        return noise.normal(i, x.shape[1:]).to(x)

    calls, plain = (_TapCalls(tap), None) if isinstance(tap, ContextualTap) else (None, tap)
    evaluate: DenoiseFn = f if cond is None and plain is None else partial(f, cond=cond, tap=plain)
    state = solver.init()
    for i, (t, s) in enumerate(itertools.pairwise(points)):
        in_step = evaluate if calls is None else _with_context(f, cond, calls, i, steps)
        if knots:
            in_step = _on_its_side(in_step, t, s)
            state = solver.init() if values[i] in knots else state
        x, state = solver.step(in_step, path, x, t, s, state, draw)
        if watch is not None and (changed := watch(i, s, x)) is not None:
            x = changed
    # One sum is enough unless it overflows: only then every number is checked.
    if not (math.isfinite(float(x.detach().sum())) or bool(torch.isfinite(x).all())):
        raise NonFinite(f"{type(solver).__name__} produced NaN or inf in {steps} steps from {values[0]:g}")
    return x


def _on_its_side(f: DenoiseFn, t: Tensor, s: Tensor) -> DenoiseFn:
    """The evaluations of a step whose ends may be knots: above s, which belongs to the next step, up to t."""
    start, above = t, torch.nextafter(s, t)

    def evaluate(x: Tensor, t: Tensor, *, s: Tensor | None = None) -> Prediction:
        return f(x, t.clamp(above, start), s=s)

    return evaluate


@dataclass
class _TapCalls:
    """A contextual tap that knows whether a network has ever called it."""

    tap: ContextualTap
    called: bool = False

    def bind(self, context: Context) -> Tap:
        self.called = True
        return self.tap.bind(context)

    def evaluate(self, context: Context, network: PartialNetwork, whole: Tap) -> Tensor:
        inner = getattr(self.tap, "evaluate", None)
        out: Tensor = network(whole, None) if inner is None else inner(context, network, whole)
        return out


def _with_context(f: DenoiserLike, cond: Cond | None, tap: _TapCalls, step: int, steps: int) -> DenoiseFn:
    """The evaluations of one step, each with a tap that is bound to its context."""
    stages = itertools.count()

    def evaluate(x: Tensor, t: Tensor, *, s: Tensor | None = None) -> Prediction:
        if t.ndim:
            raise UserError("a cache needs one time for the whole batch, and this solver gives each sample its own")
        context = Context(step, steps, next(stages), float(t), lam=float(f.path.lam(t)))
        pred = f(x, t, cond, s=s, tap=BoundTap(tap, context))
        if not tap.called:
            raise UserError("the network calls no tap, so a cache can save nothing: leave the cache out, or let each "
                            "block call its tap (gen.diffusion.tap)")  # fmt: skip
        return pred

    return evaluate

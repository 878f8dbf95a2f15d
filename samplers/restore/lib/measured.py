"""Predictions that are moved towards a measurement, at every evaluation of a loop by any solver."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid, Solver
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.noise import Noise
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import Tap
from gen.operators.lib.operator import Operator
from gen.samplers.grids.karras import Karras
from gen.samplers.restore.lib.restorer import Restorer
from gen.samplers.solvers.ancestral import Ancestral

__all__ = ["After", "MeasuredDenoiser", "MeasuredLoop", "Moved", "Pull", "with_likelihood"]

Pull = Callable[[Tensor], Tensor]  # v, shaped as x0 -> J' v, J = d x0 / d x at x_t
# (path, x, t, prediction, y, operator, pull) -> the prediction that knows y
Moved = Callable[[NoisePath, Tensor, Tensor, Prediction, Tensor, Operator, Pull], Prediction]
After = Callable[[int, Tensor, Tensor], Tensor | None]  # (step, its end's time, x) -> what becomes x


@dataclass(frozen=True)
class MeasuredLoop(Restorer):
    """A loop of a solver whose predictions know the measurement; a subclass has `moved`.

    Attributes:
        noise: standard deviation of the measurement's noise.
        solver: default ancestral sampling, which forgives what a guided prediction gets wrong; with rules for the ODE
            all but `exact` are further off.
        steps: of the solver.
        grid: its times; Karras's, between the path's own levels, by default.
    """

    noise: float = 0.0
    solver: Solver = part("samplers.solvers", default=Ancestral())
    steps: int = 100
    grid: Grid = part("samplers.grids", default=Karras())

    def __post_init__(self) -> None:
        check_fields(self, noise="[0, inf)", steps="[1, inf)")

    def restore(
        self,
        denoise: DenoiserLike,
        y: Tensor,
        operator: Operator,
        shape: tuple[int, ...],
        noise: Noise,
        cond: Cond | None = None,
    ) -> Tensor:
        times = self.grid.times(denoise.path, self.steps)
        unit = noise.normal("start", shape[1:]).to(y)
        x, moved, after = denoise.path.start(unit, times[0]), *self.rules()
        f = MeasuredDenoiser(denoise, moved, operator, y, self.differentiates)
        with torch.no_grad():
            return integrate(f, x, times, self.solver, cond=cond, noise=noise, watch=after)

    def rules(self) -> tuple[Moved, After | None]:
        """Return what a prediction becomes in one loop, `moved` by default, and what x becomes after a step."""
        return self.moved, None

    @property
    def differentiates(self) -> bool:
        """Return whether `moved` asks for the derivative of the network; True by default."""
        return True

    @abstractmethod
    def moved(
        self, path: NoisePath, x: Tensor, t: Tensor, pred: Prediction, y: Tensor, operator: Operator, pull: Pull
    ) -> Prediction:
        """Return the prediction that knows y.

        Args:
            path, x, t: where, with alpha > 0.
            pred: the prior's prediction.
            y, operator: the measurement.
            pull: derivative of the prior's x0, transposed.
        """
        ...


@dataclass(frozen=True, eq=False)
class MeasuredDenoiser:
    """A denoiser that knows a measurement.

    Attributes:
        f: the prior.
        moved: says what a prediction becomes.
        operator, y: the measurement.
        differentiates: whether `moved` asks for the derivative of the network.
    """

    f: DenoiserLike
    moved: Moved
    operator: Operator
    y: Tensor
    differentiates: bool = True

    @property
    def path(self) -> NoisePath:
        return self.f.path

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        if not bool((self.path.alpha(t) > 0).all()):  # nothing of the data is seen, so nothing can be asked of it
            return self.f(x, t, cond, s=s, tap=tap)
        leaf = x.detach()
        with torch.set_grad_enabled(self.differentiates):
            leaf.requires_grad_(self.differentiates)
            pred = self.f(leaf, t, cond, s=s, tap=tap)

        def pull(v: Tensor) -> Tensor:
            return torch.autograd.grad(pred.x0, leaf, v, retain_graph=True)[0]

        known = pred.replace(pred.x0.detach(), pred.eps.detach())
        return self.moved(self.path, x, t, known, self.y, self.operator, pull)

    def null(self, cond: Cond) -> Cond:
        """Return the condition of the unconditional prior."""
        found: Any = self.f.null(cond)
        return found


def with_likelihood(path: NoisePath, pred: Prediction, t: Tensor, score: Tensor) -> Prediction:
    """Return a prediction with the score of a likelihood added: x0 + sigma^2 / alpha q and eps - sigma q.

    Args:
        path, t: where.
        pred: the prediction.
        score: q = grad of log p(y | x_t) in x_t.
    """
    alpha, sigma = expand(path.alpha(t), score), expand(path.sigma(t), score)
    return pred.replace(pred.x0 + sigma**2 / alpha * score, pred.eps - sigma * score)

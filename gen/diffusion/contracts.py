"""The contracts of the sampling loop: solver, grid, guide and cache, and the denoiser as a solver sees it.

Each is a Protocol. A plug-in, of gen or of a user ("my_package.module:Class"), is a frozen dataclass of JSON values
that has the members; one that names the Protocol as its base inherits the defaults written here. tests/test_every.py
holds every plug-in to the laws that the docstrings state.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor

from gen.diffusion.cache_report import CacheReport
from gen.diffusion.denoiser import DenoiserLike
from gen.diffusion.path import NoisePath, Prediction
from gen.diffusion.tap import ContextualTap

__all__ = ["Cache", "CacheSession", "DenoiseFn", "DrawNoise", "Grid", "Guide", "Solver"]

DrawNoise = Callable[[], Tensor]  # unit noise of the step, shaped as x; a second call returns the same


class DenoiseFn(Protocol):
    """A denoiser as a solver sees it: condition, guide and tap are bound already."""

    def __call__(self, x: Tensor, t: Tensor, *, s: Tensor | None = None) -> Prediction:
        """Predict data and noise at x_t.

        Args:
            x: state [B, ...].
            t: its time in (0, t1], 0-d float64 on the CPU; [B] if each sample has its own, which caches refuse.
            s: the time that a flow map is to jump to, as t; None for the prediction at t.

        Returns:
            x0 and eps, shaped as x, with alpha x0 + sigma eps = x unless a guide made the pair (CFG++).
        """
        ...


class Solver(Protocol):
    """A rule for one step of the probability-flow ODE, or of its SDE, from time t to s < t.

    Must hold: `step` is a pure function, so one solver serves many loops at once; it writes to none of its arguments;
    row i of the result depends on row i alone; x keeps its dtype and device; a step to s = 0 returns a prediction of
    the data and never calls f at 0, where eps is not known. A pair of a guide that does not add up to x moves a
    first-order step by alpha_s x0 + sigma_s eps; higher orders extrapolate the x0 of
    gen.samplers.solvers.lib.exponential.data_prediction.
    """

    @property
    def order(self) -> int | None:
        """Order of convergence to the ODE over a whole loop, as measured; None (default) for what follows no ODE."""
        return None

    def nfe(self, steps: int) -> int | None:
        """Return the number of calls of f in a loop that ends at t = 0; one a step by default.

        Args:
            steps: steps of the loop, at least 1.

        Returns:
            The exact number; None if the data decide.
        """
        return steps

    @property
    def reads_variance(self) -> bool:
        """Return whether `step` needs a gen.diffusion.denoiser.LearnedVariance of f; False by default."""
        return False

    def init(self) -> Any:
        """Return the state before the first step: any immutable value; None by default."""
        return None

    @abstractmethod
    def step(
        self, f: DenoiseFn, path: NoisePath, x: Tensor, t: Tensor, s: Tensor, state: Any, noise: DrawNoise
    ) -> tuple[Tensor, Any]:
        """Advance x from t to s.

        Args:
            f: the denoiser; each call is one evaluation of the network, or more under a guide.
            path: alpha(t), sigma(t) and what follows from them.
            x: state at t, [B, ...]; any floating dtype.
            t, s: times, t1 >= t > s >= 0, 0-d float64 on the CPU.
            state: what the step before returned, or `init()`.
            noise: draws this step's unit noise, shaped as x; a deterministic rule does not call it.

        Returns:
            x at s, and the next state.
        """
        ...


class Grid(Protocol):
    """A choice of the times that a sampling loop visits."""

    def times(self, path: NoisePath, steps: int) -> Tensor:
        """Return the grid of a loop.

        Args:
            path: whose t1 and noise levels the times refer to.
            steps: steps of the loop, at least 1.

        Returns:
            float64 [steps + 1] on the CPU, strictly falling, from (nearly) path.t1 to exactly 0, or by an option to the
            small time at which a published loop ends.
        """
        ...


class Guide(Protocol):
    """A rule that turns a denoiser into another one, for one sampling loop (classifier-free guidance and its like).

    Must hold: the result's prediction for row i depends on row i alone, for t 0-d and [B]; it passes x's path and
    `null` on; every further evaluation of a network that sees a tap has its own branch
    (`gen.diffusion.tap.with_branch`). What is remembered between evaluations lives in the returned denoiser, never in
    the guide. gen.samplers.guides.lib.two_predictions has the base of guides that combine two predictions.
    """

    @abstractmethod
    def __call__(self, f: DenoiserLike, times: Tensor, *others: DenoiserLike) -> DenoiserLike:
        """Return the guided denoiser of one loop.

        Args:
            f: the denoiser to guide.
            times: the loop's grid, before `grid` has shortened it, float64 [steps + 1].
            others: the denoisers of `other_denoisers`, prepared and counted as f is; () for those themselves.
        """
        ...

    def other_denoisers(self) -> tuple[DenoiserLike, ...]:
        """Return the denoisers that it evaluates beside f, such as the weak one of autoguidance; () by default."""
        return ()

    def grid(self, times: Tensor) -> Tensor:
        """Return the times that the loop visits; all by default.

        Args:
            times: the loop's grid, float64 [steps + 1]; a guide may leave out the first ones, x stays that of times[0].
        """
        return times

    @property
    def loop_options(self) -> tuple[str, ...]:
        """Names of the options in use that need a whole sampling loop, so that a distiller can refuse them."""
        return ()


class CacheSession(ContextualTap, Protocol):
    """A cache at work on one batch: the tap of one sampling loop, which is bound to every evaluation's context.

    Must hold: nothing leaks from one session, branch or stage to another; a batch of one row gives the bits of a row of
    a batch, up to rounding; what the report says was saved was not computed. A network that meets none of its sites is
    refused.
    """

    @property
    def decides_by_features(self) -> bool:
        """Return whether it decides or measures by what sites hold, as by default, or by steps alone."""
        return True

    def report(self) -> CacheReport:
        """Return what was computed so far; raise UserError for a network without the sites that are cached."""
        ...


class Cache(Protocol):
    """A rule that leaves out a part of the network at some evaluations of a sampling loop (feature caching).

    Must hold: one setting (interval = 1, threshold = 0, keep = 1) turns it off, to the bit; a feature that its
    predictor can follow is exact. The parts that most caches consist of, policy x predictor x coordinate x sites, are
    written down in gen.samplers.caches.lib.parts; the session that runs them is in gen.samplers.caches.lib.session.
    """

    @abstractmethod
    def start(self, steps: int) -> CacheSession:
        """Begin a loop; one cache serves any number of them at once.

        Args:
            steps: of the loop.
        """
        ...

    def calibrated(self, report: CacheReport) -> Cache:
        """Return the cache to use from then on, for those that must measure first; itself by default.

        Args:
            report: of a loop under this cache, in which it computed everything.
        """
        return self

"""Composition of the denoiser that a sampling loop evaluates: network, precomputed modulations, counter, guide."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import name_of
from gen.diffusion.contracts import Guide, Solver
from gen.diffusion.denoiser import Cond, CountingDenoiser, Denoiser, DenoiserLike
from gen.diffusion.path import NoisePath, Prediction
from gen.diffusion.precompute import precompute_modulations
from gen.diffusion.tap import Tap

__all__ = ["Composition", "compose"]


@dataclass(frozen=True, eq=False)
class Composition:
    """The denoiser of one sampling loop, its grid, and the counters of its networks.

    Attributes:
        f: what the solver evaluates.
        grid: the times to visit, float64 [steps + 1]; a guide may have left out the first ones.
        counters: one for each network, the guided one first.
    """

    f: DenoiserLike
    grid: Tensor
    counters: tuple[CountingDenoiser, ...]

    @property
    def rows(self) -> int:
        """Network evaluations so far, one for each row of a batch."""
        return sum(counter.rows for counter in self.counters)


@dataclass(eq=False)
class NegativeDenoiser:
    """A denoiser whose "no condition" is a condition, which a guide then moves away from.

    Attributes:
        inner: the denoiser that is called.
        negative: tensors [B, ...], which `null` returns.
    """

    inner: DenoiserLike
    negative: Cond

    @property
    def path(self) -> NoisePath:
        return self.inner.path

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        return self.inner(x, t, cond, s=s, tap=tap)

    def null(self, cond: Cond) -> Cond:
        return self.negative


def compose(
    f: DenoiserLike,
    times: Tensor,
    solver: Solver,
    guide: Guide | None,
    cond: Cond,
    like: Tensor,
    negative: Cond | None = None,
) -> Composition:
    """Put the denoiser of one loop together; here alone the order is decided.

    From the inside: each network, with its modulations precomputed for the loop; its counter; the guide over all of
    them. Networks that a guide evaluates besides are prepared as f is.

    Args:
        f: the denoiser to sample.
        times: the loop's grid, float64 [steps + 1], falling.
        solver: decides at which times the networks are evaluated.
        guide: None for f as it is.
        cond: tensors [B, ...] of the batch.
        like: x of the batch, for its device, dtype and dimensions.
        negative: condition [B, ...] that the guide moves away from, in place of none.

    Raises:
        UserError: if a negative condition is given and no prediction would be made of it.
    """
    grid = times if guide is None else guide.grid(times)

    others = () if guide is None else guide.other_denoisers()
    for other in others:
        if isinstance(other, Denoiser):
            other.net.to(like.device)  # loaded on the CPU
    if solver.reads_variance:
        if not isinstance(f, Denoiser):
            raise UserError("the solver reads learned variances, which only a network can have")
        f = replace(f, with_variance=True)
    counters = tuple(CountingDenoiser(precompute_modulations(g, grid, solver, cond, like)) for g in (f, *others))
    first = counters[0] if negative is None else _with_negative(counters[0], guide, others, negative)
    guided = first if guide is None else guide(first, times, *counters[1:])
    return Composition(guided, grid, counters)


def _with_negative(
    f: DenoiserLike, guide: Guide | None, others: tuple[DenoiserLike, ...], negative: Cond
) -> NegativeDenoiser:
    if guide is None or others or getattr(guide, "scale", 0.0) == getattr(guide, "scale_of_cond", None):
        how = "without a guide" if guide is None else f"under {name_of(type(guide))}"
        why = " at this scale" if guide is not None and not others else ""
        raise UserError(f"negative: {how}{why} no prediction is made without the condition; cfg at scale 1.5 makes one")
    return NegativeDenoiser(f, negative)

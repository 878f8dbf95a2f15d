"""Guides that combine two predictions: where they act, on which channels, and the guided denoiser of a loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.contracts import Guide
from gen.diffusion.denoiser import Cond, Denoiser, DenoiserLike, LearnedVariance, predict_branches
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.diffusion.tap import Tap, with_branch

__all__ = ["Combine", "GuidedDenoiser", "TwoPredictionGuide", "begins_before", "dot", "extrapolate"]

# (path, x, t, c, u) -> the guided prediction, from the conditional one and the other, at x_t.
Combine = Callable[[NoisePath, Tensor, Tensor, Prediction, Prediction], Prediction]


@dataclass(frozen=True)
class TwoPredictionGuide(Guide):
    """A guide that combines two predictions, c and u, at some noise levels and leaves c alone at the others.

    A variance that the network learned is c's, as in the published DiT.

    A subclass has `combine`, or `combine_in_loop` if it remembers earlier evaluations. interval and steps speak of the
    time of an evaluation: a solver's later stages, such as Heun's second at the end of a step, count by their time.

    Attributes:
        scale: 1 for c, larger for more of c - u.
        interval: the levels sigma / alpha, low < level <= high, at which to guide; None for all.
        steps: the same as a part of the loop, (0.25, 0.75) for the middle half; steps int(start N) to int(stop N) - 1
            of N are guided.
        channels: how many of the first channels are guided (3 of 4 in the published DiT); the others stay those of c.
        batched: evaluate c and u of one network in one call with twice the batch, which reads its weights once: faster
            for small batches, and rounded otherwise. Under a cache, which tells the two apart, they stay two calls.
    """

    scale: float = 1.5
    interval: tuple[float, float] | None = None
    steps: tuple[float, float] | None = None
    channels: int | None = None
    batched: bool = False

    scale_of_cond: ClassVar[float | None] = 1.0  # at which the result is c, and u need not be computed
    scale_of_uncond: ClassVar[float | None] = None  # at which the result is u
    needs_cond: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, channels="[1, inf)")
        name = type(self).__name__
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise UserError(f"{name}: interval = {self.interval}; it must be 0 <= low < high, as sigma / alpha")
        if self.steps is not None and not 0 <= self.steps[0] < self.steps[1] <= 1:
            raise UserError(f"{name}: steps = {self.steps}; it must be 0 <= start < stop <= 1, as parts of the loop")
        if self.interval is not None and self.steps is not None:
            raise UserError(f"{name}: interval = {self.interval} and steps = {self.steps}; give one of the two")

    def __call__(self, f: DenoiserLike, times: Tensor, *others: DenoiserLike) -> DenoiserLike:
        (other,) = others or self.other_denoisers() or (None,)
        return GuidedDenoiser(f, other, self, times, self.combine_in_loop(times))

    @property
    def loop_options(self) -> tuple[str, ...]:
        return () if self.steps is None else ("steps",)

    def combine_in_loop(self, times: Tensor) -> Combine:
        """Return the rule of one loop, which may remember earlier evaluations; `combine` by default."""
        return self.combine

    def combine(self, path: NoisePath, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
        """Return the guided prediction, from the conditional one and the other, at x_t."""
        raise NotImplementedError

    def active(self, path: NoisePath, t: Tensor, times: Tensor) -> Tensor:
        """Return where to guide: bool, shaped as t."""
        if self.interval is not None:
            level = path.sigma(t) / path.alpha(t)
            return (level > self.interval[0]) & (level <= self.interval[1])
        if self.steps is not None:
            n = len(times) - 1
            first, stop = (math.floor(part * n + 1e-9) for part in self.steps)  # 0.7 * 10 is not always 7
            return begins_before(t, times, stop) & ~begins_before(t, times, first)
        return torch.ones_like(t, dtype=torch.bool)


def begins_before(t: Tensor, times: Tensor, step: int) -> Tensor:
    """Return where an evaluation at t comes before a step of the loop: bool, shaped as t.

    Args:
        t: 0-d or [B]; a stage's time may be off by rounding.
        times: the loop's grid [N + 1].
        step: index; all comes before step N.
    """
    if step >= len(times) - 1:
        return torch.ones_like(t, dtype=torch.bool)
    return (t > float(times[step]) * (1 + 1e-9)) & torch.tensor(step > 0, device=t.device)


@dataclass(frozen=True, eq=False)
class GuidedDenoiser:
    """A denoiser under guidance, for one loop.

    Attributes:
        f: predicts c.
        other: predicts u; None for f without its condition.
        guide, times: as of the guide's call.
        combine: makes one prediction of the two.
    """

    f: DenoiserLike
    other: DenoiserLike | None
    guide: TwoPredictionGuide
    times: Tensor
    combine: Combine

    @property
    def path(self) -> NoisePath:
        return self.f.path

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        guide = self.guide
        if guide.needs_cond and not cond:
            raise UserError(
                f"{type(guide).__name__} needs a condition, such as labels or captions: none is given; "
                "without a guide none is needed"
            )
        active = guide.active(self.path, t, self.times)
        if guide.scale == guide.scale_of_cond or not bool(active.any()):
            return self.f(x, t, cond, s=s, tap=tap)
        if guide.scale == guide.scale_of_uncond and guide.channels is None and bool(active.all()):
            return self.predict_other(x, t, cond, s, tap)
        if cond and guide.batched and tap is None and self.other is None:
            c, u = self.predict_batched(x, t, cond, s)
        else:
            other = partial(self.predict_other, x, t, cond, s, tap)
            plain = partial(self.f, x, t, cond, s=s, tap=tap)
            u, c = predict_branches(self.f, other, plain) if self.other is None else (other(), plain())
        whole = self.guided(x, t, cond, s, tap, c, u)
        on = active.reshape(active.shape + (1,) * (x.ndim - active.ndim)).to(x.device)
        return c.replace(*(torch.where(on, g, p) for g, p in zip(whole, c, strict=True)))

    def guided(
        self, x: Tensor, t: Tensor, cond: Cond | None, s: Tensor | None, tap: Tap | None, c: Prediction, u: Prediction
    ) -> Prediction:
        """Return the guided prediction, with the channels of c that are not guided."""
        k = x.shape[1] if self.guide.channels is None else self.guide.channels
        firsts = (Prediction(p.x0[:, :k], p.eps[:, :k]) for p in (c, u))
        guided = self.combine(self.path, x[:, :k], t, *firsts)
        return Prediction(*(torch.cat([g, p[:, k:]], 1) for g, p in zip(guided, c, strict=True)))

    def predict_other(self, x: Tensor, t: Tensor, cond: Cond | None, s: Tensor | None, tap: Tap | None) -> Prediction:
        """Return u."""
        if self.other is None:
            return self.f(x, t, self.f.null(cond or {}), s=s, tap=with_branch(tap, "uncond"))
        if isinstance(self.other, Denoiser):
            self.other.net.to(x.device)  # loaded on the CPU
        return self.other(x, t, cond, s=s, tap=with_branch(tap, "weak"))

    def predict_batched(self, x: Tensor, t: Tensor, cond: Cond, s: Tensor | None) -> tuple[Prediction, Prediction]:
        """Return c and u, from one call."""
        null = self.f.null(cond)
        twice = {key: torch.cat([value, null[key]]) for key, value in cond.items()}
        t = torch.cat([t, t]) if t.ndim else t
        s = torch.cat([s, s]) if s is not None and s.ndim else s
        p = self.f(torch.cat([x, x]), t, twice, s=s)
        (x0, x0_null), (eps, eps_null) = p.x0.chunk(2), p.eps.chunk(2)
        c, u = Prediction(x0, eps), Prediction(x0_null, eps_null)
        return (LearnedVariance(*c, p.interpolation.chunk(2)[0]) if isinstance(p, LearnedVariance) else c), u

    def null(self, cond: Cond) -> Cond:
        return self.f.null(cond)


def extrapolate(u: Prediction, c: Prediction, scale: float) -> Prediction:
    """Return u + scale (c - u), in x0 and in eps.

    Args:
        u, c: predictions, [B, ...].
        scale: 0 for u, 1 for c.
    """
    return Prediction(u.x0 + scale * (c.x0 - u.x0), u.eps + scale * (c.eps - u.eps))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return each sample's inner product, [B, 1, ...], in float32 at least.

    Args:
        a, b: [B, ...], of one shape.
    """
    wide = torch.promote_types(a.dtype, torch.float32)
    product = (a.to(wide) * b.to(wide)).flatten(1).sum(1)
    return expand(product, a.to(wide))

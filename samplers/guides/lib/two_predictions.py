"""What guides of two predictions share: where they act, on which channels, and the walk of the guided denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.diffusion.tap import Tap, with_branch

__all__ = ["Pair", "Rule", "dot", "towards"]

# (path, x, t, c, u) -> the guided prediction, from the conditional one and the other, at x_t.
Rule = Callable[[NoisePath, Tensor, Tensor, Prediction, Prediction], Prediction]


@dataclass(frozen=True)
class Pair:
    """A guide that makes one prediction of two, c and u, at some noise levels and leaves c alone at the others.

    interval: the levels sigma / alpha, low < level <= high, at which to guide. steps: the same as a part of the walk,
    (0.25, 0.75) for the middle half; steps int(start N) to int(stop N) - 1 of N are guided. Both speak of the time of
    an evaluation: a solver's later stages, such as Heun's second at the end of a step, count where their time lies.
    channels: how many of the first channels are guided (3 of 4 in the published DiT); the others stay those of c.
    together: take c and u of one network from one call with twice the batch, which reads its weights once: faster for
    small batches, and rounded otherwise. Under a cache, which tells the two apart, they stay two calls.
    """

    scale: float = 1.5
    interval: tuple[float, float] | None = None
    steps: tuple[float, float] | None = None
    channels: int | None = None
    together: bool = False

    c_alone: ClassVar[float | None] = 1.0  # the scale at which the result is c, and u need not be computed
    u_alone: ClassVar[float | None] = None  # the scale at which the result is u
    needs_cond: ClassVar[bool] = True

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise UserError(f"{name}: interval = {self.interval}; it must be 0 <= low < high, as sigma / alpha")
        if self.steps is not None and not 0 <= self.steps[0] < self.steps[1] <= 1:
            raise UserError(f"{name}: steps = {self.steps}; it must be 0 <= start < stop <= 1, as parts of the walk")
        if self.interval is not None and self.steps is not None:
            raise UserError(f"{name}: interval = {self.interval} and steps = {self.steps}; give one of the two")
        if self.channels is not None and self.channels < 1:
            raise UserError(f"{name}: channels = {self.channels}; it must be at least 1")

    def __call__(self, f: DenoiserLike, times: Tensor) -> DenoiserLike:
        return Walk(f, self.other(f), self, times, self.rule(times))

    @property
    def loop_options(self) -> tuple[str, ...]:
        """Names of the options in use that need a whole sampling loop: its grid, or its earlier evaluations."""
        return () if self.steps is None else ("steps",)

    def rule(self, times: Tensor) -> Rule:
        """How c and u become one; made anew for every walk, so it may remember."""
        raise NotImplementedError

    def other(self, f: DenoiserLike) -> DenoiserLike:
        """What predicts u."""
        return Unconditional(f)

    def active(self, path: NoisePath, t: Tensor, times: Tensor) -> Tensor:
        """Whether to guide at t: bool, shaped as t."""
        if self.interval is not None:
            level = path.sigma(t) / path.alpha(t)
            return (level > self.interval[0]) & (level <= self.interval[1])
        if self.steps is not None:
            n = len(times) - 1
            first, stop = (math.floor(part * n + 1e-9) for part in self.steps)  # 0.7 * 10 is not always 7
            return before(t, times, stop) & ~before(t, times, first)
        return torch.ones_like(t, dtype=torch.bool)


def before(t: Tensor, times: Tensor, step: int) -> Tensor:
    """Whether t lies before that step of the walk; a stage's time may be off by rounding."""
    if step >= len(times) - 1:
        return torch.ones_like(t, dtype=torch.bool)
    return (t > float(times[step]) * (1 + 1e-9)) & torch.tensor(step > 0, device=t.device)


@dataclass(frozen=True, eq=False)
class Unconditional:
    """A denoiser without its condition."""

    inner: DenoiserLike

    @property
    def path(self) -> NoisePath:
        return self.inner.path

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        return self.inner(x, t, self.inner.null(cond or {}), s=s, tap=with_branch(tap, "uncond"))

    def null(self, cond: Cond) -> Cond:
        return self.inner.null(cond)


@dataclass(frozen=True, eq=False)
class Walk:
    """A denoiser under guidance, for one walk down a grid of times."""

    inner: DenoiserLike
    other: DenoiserLike
    guide: Pair
    times: Tensor
    rule: Rule

    @property
    def path(self) -> NoisePath:
        return self.inner.path

    def __call__(
        self, x: Tensor, t: Tensor, cond: Cond | None = None, *, s: Tensor | None = None, tap: Tap | None = None
    ) -> Prediction:
        if self.guide.needs_cond and not cond:
            raise UserError(f"{type(self.guide).__name__} needs a condition, such as labels: none is given")
        active = self.guide.active(self.path, t, self.times)
        if self.guide.scale == self.guide.c_alone or not bool(active.any()):
            return self.inner(x, t, cond, s=s, tap=tap)
        if self.guide.scale == self.guide.u_alone and self.guide.channels is None and bool(active.all()):
            return self.other(x, t, cond, s=s, tap=tap)
        if cond and self.guide.together and tap is None and isinstance(self.other, Unconditional):
            c, u = self.both(x, t, cond, s)
        else:
            u = self.other(x, t, cond, s=s, tap=tap)
            c = self.inner(x, t, cond, s=s, tap=tap)
        k = x.shape[1] if self.guide.channels is None else self.guide.channels
        firsts = (Prediction(p.x0[:, :k], p.eps[:, :k]) for p in (c, u))
        guided = self.rule(self.path, x[:, :k], t, *firsts)
        whole = [torch.cat([g, p[:, k:]], 1) for g, p in zip(guided, c, strict=True)]
        on = active.reshape(active.shape + (1,) * (x.ndim - active.ndim)).to(x.device)
        return Prediction(*(torch.where(on, g, p) for g, p in zip(whole, c, strict=True)))

    def both(self, x: Tensor, t: Tensor, cond: Cond, s: Tensor | None) -> tuple[Prediction, Prediction]:
        """c and u from one call."""
        null = self.inner.null(cond)
        twice = {key: torch.cat([value, null[key]]) for key, value in cond.items()}
        times = [None if v is None else torch.cat([v, v]) if v.ndim else v for v in (t, s)]
        p = self.inner(torch.cat([x, x]), times[0], twice, s=times[1])  # type: ignore[arg-type]
        (x0, x0_null), (eps, eps_null) = p.x0.chunk(2), p.eps.chunk(2)
        return Prediction(x0, eps), Prediction(x0_null, eps_null)

    def null(self, cond: Cond) -> Cond:
        return self.inner.null(cond)


def towards(u: Prediction, c: Prediction, scale: float) -> Prediction:
    """u + scale (c - u), in x0 and in eps."""
    return Prediction(u.x0 + scale * (c.x0 - u.x0), u.eps + scale * (c.eps - u.eps))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Each sample's inner product of a and b [B, ...], as [B, 1, ...]; in float32 at least."""
    wide = torch.promote_types(a.dtype, torch.float32)
    product = (a.to(wide) * b.to(wide)).flatten(1).sum(1)
    return expand(product, a.to(wide))

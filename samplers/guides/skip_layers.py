"""Guidance away from the network without some of its blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.denoiser import Cond, DenoiserLike
from gen.diffusion.path import NoisePath, Prediction, expand
from gen.diffusion.tap import Chain, Compute, Tap, with_branch
from gen.samplers.guides.lib.two_predictions import GuidedDenoiser, TwoPredictionGuide, begins_before, extrapolate

__all__ = ["SkipLayers"]


@dataclass(frozen=True)
class SkipLayers(TwoPredictionGuide):
    """Classifier-free guidance plus skip_scale (c - c'), c' of the network without some blocks: SD3.5's, early on.

    c' is a third evaluation. As in diffusers' pipeline there is none where classifier-free guidance is off: at scale 1
    and outside its interval.

    Attributes:
        scale: of classifier-free guidance.
        sites: the blocks that are left out, by their names to taps or patterns of these; SD3.5 medium's default.
        skip_scale: of c - c'.
        skip_steps: the part of the loop in which it acts: steps i with start N < i < stop N, of N.
    """

    scale: float = 4.0
    sites: tuple[str, ...] = ("blocks.7", "blocks.8", "blocks.9")
    skip_scale: float = 2.8
    skip_steps: tuple[float, float] = (0.01, 0.2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.skip_steps[0] < self.skip_steps[1] <= 1:
            raise UserError(f"SkipLayers: skip_steps = {self.skip_steps}; it must be 0 <= start < stop <= 1")
        if not self.sites:
            raise UserError('SkipLayers: sites = (); name the blocks to leave out, such as "blocks.7"')

    def __call__(self, f: DenoiserLike, times: Tensor, *others: DenoiserLike) -> DenoiserLike:
        return SkipGuidedDenoiser(f, None, self, times, self.combine, self)

    @property
    def loop_options(self) -> tuple[str, ...]:
        return (*super().loop_options, "skip_scale") if self.skip_scale else super().loop_options

    def combine(self, path: NoisePath, x: Tensor, t: Tensor, c: Prediction, u: Prediction) -> Prediction:
        return extrapolate(u, c, self.scale)

    def skips(self, t: Tensor, times: Tensor) -> Tensor:
        """Return where c - c' is added: bool, shaped as t."""
        start, stop = (part * (len(times) - 1) for part in self.skip_steps)
        return begins_before(t, times, math.ceil(stop - 1e-9)) & ~begins_before(t, times, math.floor(start + 1e-9) + 1)


@dataclass(frozen=True, eq=False)
class SkipGuidedDenoiser(GuidedDenoiser):
    """A guided denoiser that also moves away from its network without some blocks.

    Attributes:
        skip: says which, when and by how much.
    """

    skip: SkipLayers

    def guided(
        self, x: Tensor, t: Tensor, cond: Cond | None, s: Tensor | None, tap: Tap | None, c: Prediction, u: Prediction
    ) -> Prediction:
        plain, where = super().guided(x, t, cond, s, tap, c, u), self.skip.skips(t, self.times)
        if not self.skip.skip_scale or not bool(where.any()):
            return plain
        left_out = _LeftOut(self.skip.sites)
        outer = with_branch(tap, "skip")
        worse = self.f(x, t, cond, s=s, tap=left_out if outer is None else Chain((left_out, outer)))
        if not left_out.met and tap is None:  # a cache may leave out what lies around them
            raise UserError(f"SkipLayers: sites = {self.skip.sites}; the network has no block of such a name")
        channels = torch.arange(x.shape[1], device=x.device) < (self.skip.channels or x.shape[1])
        weight = expand(self.skip.skip_scale * where.to(x.device), x) * channels.reshape(-1, *(1,) * (x.ndim - 2))
        return Prediction(*(g + weight * (p - q) for g, p, q in zip(plain, c, worse, strict=True)))


@dataclass
class _LeftOut:
    """A tap that leaves out sites, and knows whether it met one."""

    patterns: tuple[str, ...]
    met: set[str] = field(default_factory=set)

    def __call__(self, site: str, compute: Compute, h: Tensor) -> Tensor:
        if not any(fnmatchcase(site, pattern) for pattern in self.patterns):
            return compute(h)
        self.met.add(site)
        return torch.zeros_like(h)

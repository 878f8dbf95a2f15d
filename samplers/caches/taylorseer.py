"""TaylorSeer."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.spec import part
from gen.samplers.caches.coordinates.step import Step
from gen.samplers.caches.lib.parts import Coordinate
from gen.samplers.caches.lib.session import CachePreset, SiteCacheSession
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.predictors.taylor import Taylor

__all__ = ["TaylorSeer"]


@dataclass(frozen=True)
class TaylorSeer(CachePreset):
    """Every attention and MLP output, before its gate, is extrapolated between full steps (arXiv 2503.06923).

    The defaults are the published ones for DiT. Gates and norms run on every step.

    Attributes:
        interval, warmup: of the full steps, see policies/interval.py; interval = 1 turns it off.
        order, coordinate: of the extrapolation.
        sites: patterns of the sites to cache.
    """

    interval: int = 4
    order: int = 4
    warmup: int = 2
    coordinate: Coordinate = part("samplers.caches.coordinates", default=Step())
    sites: tuple[str, ...] = ("blocks.*.attn.raw", "blocks.*.mlp.raw")

    def start(self, steps: int) -> SiteCacheSession:
        since = self.warmup - 1.0 if self.coordinate == Step() else None  # differences start with the last warm-up
        policy, predictor = Interval(self.interval, self.warmup), Taylor(self.order, since)
        return SiteCacheSession(steps, policy, predictor, self.sites, coordinate=self.coordinate)

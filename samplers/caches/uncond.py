"""The unconditional half of guidance."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.spec import part
from gen.samplers.caches.coordinates.step import Step
from gen.samplers.caches.lib.parts import Coordinate
from gen.samplers.caches.lib.session import CachePreset, SiteCacheSession
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.predictors.taylor import Taylor

__all__ = ["Uncond"]


@dataclass(frozen=True)
class Uncond(CachePreset):
    """Extrapolates the last block's output in the unconditional branch only; the conditional one is always computed.

    At interval N guidance costs little more than 1 / N of what it did.

    Attributes:
        interval, warmup: of the full steps, see policies/interval.py; interval = 1 turns it off.
        order, coordinate: of the extrapolation.
        branches: that are cached.
        sites: patterns of the sites to cache.
    """

    interval: int = 4
    order: int = 1
    warmup: int = 2
    coordinate: Coordinate = part("samplers.caches.coordinates", default=Step())
    branches: tuple[str, ...] = ("uncond",)
    sites: tuple[str, ...] = ("trunk",)

    def start(self, steps: int) -> SiteCacheSession:
        policy, predictor = Interval(self.interval, self.warmup), Taylor(self.order)
        return SiteCacheSession(
            steps, policy, predictor, self.sites, coordinate=self.coordinate, branches=self.branches
        )

"""SpeCa."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.spec import part
from gen.samplers.caches.coordinates.step import Step
from gen.samplers.caches.lib.parts import Coordinate
from gen.samplers.caches.lib.session import CachePreset, SiteCacheSession
from gen.samplers.caches.policies.verify import Verify
from gen.samplers.caches.predictors.taylor import Taylor

__all__ = ["SpeCa"]


@dataclass(frozen=True)
class SpeCa(CachePreset):
    """Drafts the last block's input, runs that block on the draft, and stops drafting when the two disagree.

    After Liu et al. 2025, who draft every module; here it is the one feature that the last block needs. Each row is
    verified by itself.

    Attributes:
        threshold, decay, floor, longest, warmup, per_batch: see policies/verify.py; threshold = 0 turns it off.
        order, coordinate: of the extrapolation.
        last: pattern of the blocks' outputs, the last of which verifies.
        sites: patterns of the sites to cache.
    """

    threshold: float = 0.3
    decay: float = 0.05
    floor: float = 0.01
    longest: int = 8
    order: int = 4
    warmup: int = 2
    coordinate: Coordinate = part("samplers.caches.coordinates", default=Step())
    last: str = "hidden.*"
    sites: tuple[str, ...] = ("trunk",)
    per_batch: bool = False

    def start(self, steps: int) -> SiteCacheSession:
        policy = Verify(self.threshold, self.decay, self.floor, self.longest, self.warmup, self.last, self.per_batch)
        return SiteCacheSession(steps, policy, Taylor(self.order), self.sites, coordinate=self.coordinate)

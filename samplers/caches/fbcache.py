"""The first block cache."""

from __future__ import annotations

from dataclasses import dataclass

from gen.samplers.caches.lib.session import CachePreset, SiteCacheSession
from gen.samplers.caches.policies.residual import Residual
from gen.samplers.caches.predictors.reuse import Reuse

__all__ = ["FBCache"]


@dataclass(frozen=True)
class FBCache(CachePreset):
    """Uses again what all blocks but the first add, while what the first adds has changed little (ParaAttention).

    The first block always runs.

    Attributes:
        threshold, warmup, per_batch: see policies/residual.py; threshold = 0 turns it off.
        first: site of the first block's output.
        sites: patterns of the sites to cache.
    """

    threshold: float = 0.08
    warmup: int = 1
    first: str = "hidden.0"
    sites: tuple[str, ...] = ("trunk",)
    per_batch: bool = False

    def start(self, steps: int) -> SiteCacheSession:
        policy = Residual(self.threshold, self.warmup, self.first, self.per_batch)
        return SiteCacheSession(steps, policy, Reuse(), self.sites, subtract="probe")

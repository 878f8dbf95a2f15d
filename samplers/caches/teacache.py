"""TeaCache."""

from __future__ import annotations

from dataclasses import dataclass

from gen.samplers.caches.lib.session import CachePreset, SiteCacheSession
from gen.samplers.caches.policies.indicator import Indicator
from gen.samplers.caches.predictors.reuse import Reuse

__all__ = ["TeaCache"]


@dataclass(frozen=True)
class TeaCache(CachePreset):
    """Uses again what all blocks add until the first block's modulated input has moved far enough (Liu et al. 2024).

    Attributes:
        threshold, coefficients, warmup, per_batch: see policies/indicator.py; threshold = 0 turns it off.
        first: site of the first attention.
        sites: patterns of the sites to cache.
    """

    threshold: float = 0.15
    coefficients: tuple[float, ...] = (1.0, 0.0)
    warmup: int = 1
    first: str = "blocks.0.attn.raw"
    sites: tuple[str, ...] = ("trunk",)
    per_batch: bool = False

    def start(self, steps: int) -> SiteCacheSession:
        policy = Indicator(self.threshold, self.coefficients, self.warmup, self.first, self.per_batch)
        return SiteCacheSession(steps, policy, Reuse(), self.sites, subtract="input")

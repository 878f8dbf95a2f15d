"""FORA."""

from __future__ import annotations

from dataclasses import dataclass

from gen.samplers.caches.lib.session import CachePreset, SiteCacheSession
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.predictors.reuse import Reuse

__all__ = ["FORA"]


@dataclass(frozen=True)
class FORA(CachePreset):
    """Every attention and MLP output, before its gate, is used again until the next full step (Selvaraju et al. 2024).

    Attributes:
        interval, warmup: of the full steps, see policies/interval.py; interval = 1 turns it off.
        sites: patterns of the sites to cache.
    """

    interval: int = 3
    warmup: int = 1
    sites: tuple[str, ...] = ("blocks.*.attn.raw", "blocks.*.mlp.raw")

    def start(self, steps: int) -> SiteCacheSession:
        return SiteCacheSession(steps, Interval(self.interval, self.warmup), Reuse(), self.sites)

"""Confidence-gated Taylor."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.fields import check_fields
from gen.samplers.caches.lib.session import CachePreset, SiteCacheSession
from gen.samplers.caches.policies.gate import Gate
from gen.samplers.caches.predictors.taylor import Taylor

__all__ = ["CGTaylor"]


@dataclass(frozen=True)
class CGTaylor(CachePreset):
    """Extrapolates the last block's output where extrapolating the first block's was right (arXiv 2508.02240).

    The defaults are the published ones for DiT.

    Attributes:
        threshold, warmup, per_batch: see policies/gate.py; threshold = 0 turns it off.
        first_order, last_order: of the extrapolation of the first and the last block.
        first: site of the first block's output.
        sites: patterns of the sites to cache.
    """

    threshold: float = 0.008
    first_order: int = 3
    last_order: int = 1
    warmup: int = 3
    first: str = "hidden.0"
    sites: tuple[str, ...] = ("trunk",)
    per_batch: bool = False

    def __post_init__(self) -> None:
        check_fields(self, threshold="[0, inf)", first_order="[0, inf)", last_order="[0, inf)", warmup="[0, inf)")

    def start(self, steps: int) -> SiteCacheSession:
        gate = Gate(self.threshold, self.warmup, Taylor(self.first_order), probe=self.first, per_batch=self.per_batch)
        return SiteCacheSession(steps, gate, Taylor(self.last_order), self.sites)

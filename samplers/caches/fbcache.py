"""The first block cache."""

from __future__ import annotations

from dataclasses import dataclass

from gen.samplers.caches.lib.session import Run
from gen.samplers.caches.policies.residual import Residual
from gen.samplers.caches.predictors.reuse import Reuse

__all__ = ["FBCache"]


@dataclass(frozen=True)
class FBCache:
    """Uses again what all blocks but the first add, while what the first adds has changed little (ParaAttention).

    The first block always runs. Each row has its own decision; the original takes one for the batch. threshold = 0
    turns it off.
    """

    threshold: float = 0.08
    warmup: int = 1
    first: str = "hidden.0"
    sites: tuple[str, ...] = ("trunk",)

    def __post_init__(self) -> None:
        self.start(1)

    def start(self, steps: int) -> Run:
        return Run(steps, Residual(self.threshold, self.warmup, self.first), Reuse(), self.sites, base="probe")

"""FORA."""

from __future__ import annotations

from dataclasses import dataclass

from gen.samplers.caches.lib.session import Run
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.predictors.reuse import Reuse

__all__ = ["FORA"]


@dataclass(frozen=True)
class FORA:
    """Every attention and MLP output, before its gate, is used again until the next full step (Selvaraju et al. 2024).

    interval = 1 turns it off.
    """

    interval: int = 3
    warmup: int = 1
    sites: tuple[str, ...] = ("blocks.*.attn.raw", "blocks.*.mlp.raw")

    def __post_init__(self) -> None:
        self.start(1)

    def start(self, steps: int) -> Run:
        return Run(steps, Interval(self.interval, self.warmup), Reuse(), self.sites)

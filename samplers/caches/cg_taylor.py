"""Confidence-gated Taylor."""

from __future__ import annotations

from dataclasses import dataclass

from gen.samplers.caches.lib.session import Run
from gen.samplers.caches.policies.gate import Gate
from gen.samplers.caches.predictors.taylor import Taylor

__all__ = ["CGTaylor"]


@dataclass(frozen=True)
class CGTaylor:
    """Extrapolates the last block's output where extrapolating the first block's was right (arXiv 2508.02240).

    The defaults are the published ones for DiT. first_order and last_order: of the ladders of the first and the last
    block. threshold = 0 turns it off.
    """

    threshold: float = 0.008
    first_order: int = 3
    last_order: int = 1
    warmup: int = 3
    first: str = "hidden.0"
    sites: tuple[str, ...] = ("trunk",)

    def __post_init__(self) -> None:
        self.start(1)

    def start(self, steps: int) -> Run:
        gate = Gate(self.threshold, self.warmup, Taylor(self.first_order), probe=self.first)
        return Run(steps, gate, Taylor(self.last_order), self.sites)

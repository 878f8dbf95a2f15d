"""SpeCa."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gen.config.spec import build, part
from gen.samplers.caches.coordinates.step import Step
from gen.samplers.caches.lib.session import Run
from gen.samplers.caches.policies.verify import Verify
from gen.samplers.caches.predictors.taylor import Taylor

__all__ = ["SpeCa"]


@dataclass(frozen=True)
class SpeCa:
    """Drafts the last block's input, runs that block on the draft, and stops drafting when the two disagree.

    After Liu et al. 2025, who draft every module; here it is the one feature that the last block needs. Each row has
    its own verdict. threshold = 0 turns it off.
    """

    threshold: float = 0.3
    decay: float = 0.05
    floor: float = 0.01
    longest: int = 8
    order: int = 4
    warmup: int = 2
    coordinate: Any = part("samplers.caches.coordinates", default=Step())
    last: str = "hidden.*"
    sites: tuple[str, ...] = ("trunk",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "coordinate", build("samplers.caches.coordinates", self.coordinate))
        self.start(1)

    def start(self, steps: int) -> Run:
        policy = Verify(self.threshold, self.decay, self.floor, self.longest, self.warmup, self.last)
        return Run(steps, policy, Taylor(self.order), self.sites, coordinate=self.coordinate)

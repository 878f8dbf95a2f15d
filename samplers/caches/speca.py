"""SpeCa."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gen.samplers.caches._run import Run
from gen.samplers.caches.along.step import Step
from gen.samplers.caches.what.taylor import Taylor
from gen.samplers.caches.when.verify import Verify
from gen.spec import build, part

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
    along: Any = part("samplers.caches.along", default=Step())
    last: str = "hidden.*"
    sites: tuple[str, ...] = ("trunk",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "along", build("samplers.caches.along", self.along))
        self.start(1)

    def start(self, steps: int) -> Run:
        when = Verify(self.threshold, self.decay, self.floor, self.longest, self.warmup, self.last)
        return Run(steps, when, Taylor(self.order), self.sites, along=self.along)

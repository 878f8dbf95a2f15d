"""TaylorSeer on one feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gen.samplers.caches._run import Run
from gen.samplers.caches.along.step import Step
from gen.samplers.caches.what.taylor import Taylor
from gen.samplers.caches.when.interval import Interval
from gen.spec import build, part

__all__ = ["TaylorSeerLite"]


@dataclass(frozen=True)
class TaylorSeerLite:
    """The last block's output alone is extrapolated between full steps: a skipped step runs no block at all.

    One feature in memory instead of two for each block. Along {"name": "lam", "path": the model's} it drifts less than
    along the step. interval = 1 turns it off.
    """

    interval: int = 4
    order: int = 3
    warmup: int = 2
    along: Any = part("samplers.caches.along", default=Step())
    sites: tuple[str, ...] = ("trunk",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "along", build("samplers.caches.along", self.along))
        self.start(1)

    def start(self, steps: int) -> Run:
        since = self.warmup - 1.0 if self.along == Step() else None  # as in TaylorSeer
        return Run(steps, Interval(self.interval, self.warmup), Taylor(self.order, since), self.sites, along=self.along)

"""TaylorSeer on one feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gen.config.spec import build, part
from gen.samplers.caches.coordinates.step import Step
from gen.samplers.caches.lib.session import Run
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.predictors.taylor import Taylor

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
    coordinate: Any = part("samplers.caches.coordinates", default=Step())
    sites: tuple[str, ...] = ("trunk",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "coordinate", build("samplers.caches.coordinates", self.coordinate))
        self.start(1)

    def start(self, steps: int) -> Run:
        since = self.warmup - 1.0 if self.coordinate == Step() else None  # as in TaylorSeer
        policy = Interval(self.interval, self.warmup)
        return Run(steps, policy, Taylor(self.order, since), self.sites, coordinate=self.coordinate)

"""The unconditional half of guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gen.samplers.caches._run import Run
from gen.samplers.caches.along.step import Step
from gen.samplers.caches.what.taylor import Taylor
from gen.samplers.caches.when.interval import Interval
from gen.spec import build, part

__all__ = ["Uncond"]


@dataclass(frozen=True)
class Uncond:
    """Extrapolates the last block's output in the unconditional branch only; the conditional one is always computed.

    At interval N guidance costs little more than 1 / N of what it did. interval = 1 turns it off.
    """

    interval: int = 4
    order: int = 1
    warmup: int = 2
    along: Any = part("samplers.caches.along", default=Step())
    branches: tuple[str, ...] = ("uncond",)
    sites: tuple[str, ...] = ("trunk",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "along", build("samplers.caches.along", self.along))
        self.start(1)

    def start(self, steps: int) -> Run:
        when, what = Interval(self.interval, self.warmup), Taylor(self.order)
        return Run(steps, when, what, self.sites, along=self.along, branches=self.branches)

"""The unconditional half of guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gen.config.spec import build, part
from gen.samplers.caches.coordinates.step import Step
from gen.samplers.caches.lib.session import Run
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.predictors.taylor import Taylor

__all__ = ["Uncond"]


@dataclass(frozen=True)
class Uncond:
    """Extrapolates the last block's output in the unconditional branch only; the conditional one is always computed.

    At interval N guidance costs little more than 1 / N of what it did. interval = 1 turns it off.
    """

    interval: int = 4
    order: int = 1
    warmup: int = 2
    coordinate: Any = part("samplers.caches.coordinates", default=Step())
    branches: tuple[str, ...] = ("uncond",)
    sites: tuple[str, ...] = ("trunk",)

    def __post_init__(self) -> None:
        object.__setattr__(self, "coordinate", build("samplers.caches.coordinates", self.coordinate))
        self.start(1)

    def start(self, steps: int) -> Run:
        policy, predictor = Interval(self.interval, self.warmup), Taylor(self.order)
        return Run(steps, policy, predictor, self.sites, coordinate=self.coordinate, branches=self.branches)

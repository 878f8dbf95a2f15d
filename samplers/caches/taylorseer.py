"""TaylorSeer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gen.config.spec import build, part
from gen.samplers.caches.coordinates.step import Step
from gen.samplers.caches.lib.session import Run
from gen.samplers.caches.policies.interval import Interval
from gen.samplers.caches.predictors.taylor import Taylor

__all__ = ["TaylorSeer"]


@dataclass(frozen=True)
class TaylorSeer:
    """Every attention and MLP output, before its gate, is extrapolated between full steps (arXiv 2503.06923).

    The defaults are the published ones for DiT. Gates and norms run on every step. interval = 1 turns it off.
    """

    interval: int = 4
    order: int = 4
    warmup: int = 2
    coordinate: Any = part("samplers.caches.coordinates", default=Step())
    sites: tuple[str, ...] = ("blocks.*.attn.raw", "blocks.*.mlp.raw")

    def __post_init__(self) -> None:
        object.__setattr__(self, "coordinate", build("samplers.caches.coordinates", self.coordinate))
        self.start(1)

    def start(self, steps: int) -> Run:
        since = self.warmup - 1.0 if self.coordinate == Step() else None  # differences start with the last warm-up
        policy = Interval(self.interval, self.warmup)
        return Run(steps, policy, Taylor(self.order, since), self.sites, coordinate=self.coordinate)

"""TaylorSeer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gen.samplers.caches._run import Run
from gen.samplers.caches.along.step import Step
from gen.samplers.caches.what.taylor import Taylor
from gen.samplers.caches.when.interval import Interval
from gen.spec import build, part

__all__ = ["TaylorSeer"]


@dataclass(frozen=True)
class TaylorSeer:
    """Every attention and MLP output, before its gate, is extrapolated between full steps (arXiv 2503.06923).

    The defaults are the published ones for DiT. Gates and norms run on every step. interval = 1 turns it off.
    """

    interval: int = 4
    order: int = 4
    warmup: int = 2
    along: Any = part("samplers.caches.along", default=Step())
    sites: tuple[str, ...] = ("blocks.*.attn.raw", "blocks.*.mlp.raw")

    def __post_init__(self) -> None:
        object.__setattr__(self, "along", build("samplers.caches.along", self.along))
        self.start(1)

    def start(self, steps: int) -> Run:
        since = self.warmup - 1.0 if self.along == Step() else None  # differences start with the last warm-up step
        return Run(steps, Interval(self.interval, self.warmup), Taylor(self.order, since), self.sites, along=self.along)

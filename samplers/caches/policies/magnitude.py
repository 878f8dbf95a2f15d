"""MagCache's budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.tap import Context
from gen.samplers.caches.lib.parts import CachePolicy, Rows

__all__ = ["Magnitude"]


class State(NamedTuple):
    """Since the last computed step: the product of ratios, the sum of its distances from 1, the steps skipped."""

    ratio: float = 1.0
    error: float = 0.0
    skipped: int = 0
    step: int = 0


@dataclass(frozen=True)
class Magnitude(CachePolicy):
    """Skips while the features' size, as once calibrated, has drifted little (MagCache, Ma et al. 2025).

    Attributes:
        ratios: for each step mean |r_t| / |r_(t-1)| of the feature; another number of steps takes the nearest in time.
            () is not calibrated: everything is computed.
        threshold: the largest sum of |1 - product of ratios|.
        longest: the most steps in a row to skip.
        retention: the share of steps, from the first, that are computed, in [0, 1].
    """

    ratios: tuple[float, ...] = ()
    threshold: float = 0.24
    longest: int = 5
    retention: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self, ratios="(0, inf)", longest="[0, inf)", retention="[0, 1]")

    def decide(self, context: Context, state: State | None, h: Tensor | None, out: Tensor | None) -> tuple[Rows, State]:
        full = [True], State(step=context.step)
        if not self.ratios or state is None or context.step < int(self.retention * context.steps):
            return full
        ratio, error = state.ratio, state.error
        for step in range(state.step + 1, context.step + 1):  # more than one where the branch missed steps
            ratio *= self._ratio(step, context.steps)
            error += abs(1 - ratio)
        if error < self.threshold and state.skipped < self.longest:
            return [False], State(ratio, error, state.skipped + 1, context.step)
        return full

    def _ratio(self, step: int, steps: int) -> float:
        return self.ratios[round(step * (len(self.ratios) - 1) / max(steps - 1, 1))]

"""Every so many steps."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.tap import Context
from gen.samplers.caches.lib.parts import CachePolicy, Rows

__all__ = ["Interval"]


@dataclass(frozen=True)
class Interval(CachePolicy):
    """The first `warmup` steps, then one step in `interval` (FORA, TaylorSeer).

    Counted from the branch's own last computed step: a branch that missed steps, outside a guidance interval, is
    computed when it returns if its features are that old. 50 steps with a warm-up of 2 have 18, 14 and 11 full ones at
    intervals of 3, 4 and 5, the counts that TaylorSeer reports.

    Attributes:
        interval: 1 computes everything.
        warmup: first steps that are computed.
    """

    interval: int = 4
    warmup: int = 2

    def __post_init__(self) -> None:
        check_fields(self, interval="[1, inf)", warmup="[0, inf)")

    def decide(self, context: Context, state: int | None, h: Tensor | None, out: Tensor | None) -> tuple[Rows, int]:
        if state is None or context.step < self.warmup or context.step - state >= self.interval:
            return [True], context.step
        return [False], state

"""SpeCa's verification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.tap import Context
from gen.samplers.caches.lib.parts import CachePolicy, Rows
from gen.samplers.caches.policies.lib.distance import relative_l1

__all__ = ["Verify"]


class State(NamedTuple):
    """For each row, or for all alike: the last computed step, and whether the check since has failed."""

    last: tuple[int, ...]
    failed: tuple[bool, ...]


@dataclass(frozen=True)
class Verify(CachePolicy):
    """Drafts, and lets the last block judge the draft (SpeCa, Liu et al. 2025).

    On a skipped step the last of the sites that match `check` really runs, on its predicted input. A row whose draft of
    that block's output is off by mean |draft - real| / mean |real| >= max(floor, threshold decay^progress), progress
    from 0 to 1 over the loop, is computed at its next step.

    Attributes:
        threshold, decay, floor: of that bound; threshold = 0 trusts no draft.
        longest: the most steps in a row to skip.
        warmup: first steps that are computed.
        per_batch: one decision for the whole batch, on which every row then depends, as in the original.
        check: pattern of the blocks' outputs.
    """

    threshold: float = 0.3
    decay: float = 0.05
    floor: float = 0.01
    longest: int = 8
    warmup: int = 2
    check: str = "hidden.*"
    per_batch: bool = False

    def __post_init__(self) -> None:
        check_fields(self, threshold="[0, inf)", decay="(0, 1]", floor="[0, inf)", longest="[0, inf)")

    def decide(self, context: Context, state: State | None, h: Tensor | None, out: Tensor | None) -> tuple[Rows, State]:
        if state is None or context.step < self.warmup or self.threshold == 0:
            return [True], State((context.step,), (False,))
        pairs = list(zip(state.last, state.failed, strict=True))
        rows = [failed or context.step - last > self.longest for last, failed in pairs]
        last = tuple(context.step if row else old for row, old in zip(rows, state.last, strict=True))
        return rows, State(last, (False,) * len(rows))

    def verify(self, context: Context, state: State, draft: Tensor, real: Tensor) -> State:
        progress = context.step / max(context.steps - 1, 1)
        limit = max(self.floor, self.threshold * self.decay**progress)
        failed = tuple(not off < limit for off in relative_l1(draft, real, self.per_batch))
        last = state.last if len(state.last) == len(failed) else state.last * len(failed)
        fresh = [step == context.step for step in last]  # rows computed just now have no draft
        return State(last, tuple(bad and not new for bad, new in zip(failed, fresh, strict=True)))

"""The first block cache's threshold."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.tap import Context
from gen.samplers.caches.lib.memory import select
from gen.samplers.caches.lib.parts import CachePolicy, Rows
from gen.samplers.caches.policies.lib.distance import relative_l1

__all__ = ["Residual"]


@dataclass(frozen=True)
class Residual(CachePolicy):
    """Skips while what the first block adds is as it was at the last computed step (ParaAttention's FBCache).

    The probe always runs.

    Attributes:
        threshold: a row is skipped if mean |r - r'| / mean |r'| is below it, where r is the probe's output less its
            input, and r' the same when the row was last computed.
        warmup: first steps that are computed.
        per_batch: one decision for the whole batch, on which every row then depends, as in the original.
        probe: site of the first block's output.
    """

    threshold: float = 0.08
    warmup: int = 1
    probe: str = "hidden.0"
    per_batch: bool = False

    def __post_init__(self) -> None:
        check_fields(self, threshold="[0, inf)")

    def decide(
        self, context: Context, state: Tensor | None, h: Tensor | None, out: Tensor | None
    ) -> tuple[Rows, Tensor]:
        assert h is not None and out is not None
        added = out - h
        if state is None or context.step < self.warmup:
            return [True] * len(added), added
        rows = [not off < self.threshold for off in relative_l1(added, state, self.per_batch)]
        return rows, select(rows, added, state)

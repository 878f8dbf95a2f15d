"""The first block cache's threshold."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.tap import Context
from gen.samplers.caches.lib.memory import select
from gen.samplers.caches.policies.lib.policy import Policy, Rows, distance

__all__ = ["Residual"]


@dataclass(frozen=True)
class Residual(Policy):
    """Skips while what the first block adds is as it was at the last computed step (ParaAttention's FBCache).

    The probe always runs. A row is skipped if mean |r - r'| / mean |r'| < threshold, where r is the probe's output less
    its input, and r' the same when the row was last computed. The first `warmup` steps are computed.
    """

    threshold: float = 0.08
    warmup: int = 1
    probe: str = "hidden.0"  # type: ignore[misc]

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise UserError(f"residual: threshold = {self.threshold}; it must be at least 0")

    def decide(
        self, context: Context, state: Tensor | None, h: Tensor | None, out: Tensor | None
    ) -> tuple[Rows, Tensor]:
        assert h is not None and out is not None
        added = out - h
        if state is None or context.step < self.warmup:
            return [True] * len(added), added
        rows = [not off < self.threshold for off in distance(added, state)]
        return rows, select(rows, added, state)

"""Entropy: every token whose distribution is narrow enough, and always the narrowest (dParallel, d3LLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gen.config.errors import UserError
from gen.samplers.decoding_policies.lib.score import first, score
from gen.text.contracts import CommitDecision, RowState, StepView

__all__ = ["Entropy"]


@dataclass(frozen=True)
class Entropy:
    """Commits every token whose entropy is at most `threshold` nats, and the lowest one (Chen et al. 2025, dParallel).

    Made for models distilled to be certain (0.4 to 0.5); on others it is as blind to dependence as any threshold.
    """

    threshold: float = 0.5
    may_skip: ClassVar[bool] = False
    order_depends_on_samples: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise UserError(f"Entropy: threshold = {self.threshold}; it must be at least 0 nats")

    def init(self, rows: int, length: int) -> RowState:
        return {}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        narrow = score(view, "entropy")
        return CommitDecision((narrow >= -self.threshold) | first(narrow, torch.ones_like(view.step))), state

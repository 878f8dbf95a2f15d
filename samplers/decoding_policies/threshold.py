"""Threshold: every token that is sure enough, and always the surest (Fast-dLLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gen.config.errors import UserError
from gen.samplers.decoding_policies.lib.score import first, score
from gen.text.contracts import CommitDecision, RowState, StepView

__all__ = ["Threshold"]


@dataclass(frozen=True)
class Threshold:
    """Commits every token whose probability is at least `threshold`, and the likeliest one (Wu et al. 2025).

    strict: more than the threshold, as in Fast-dLLM v2 and diffusers' BlockRefinementScheduler. With tokens that depend
    on one another no threshold is safe: of n tokens with probability p each, the joint need only have 1 - n (1 - p).
    """

    threshold: float = 0.9
    strict: bool = False
    may_skip: ClassVar[bool] = False
    order_depends_on_samples: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"Threshold: threshold = {self.threshold}; it must be in [0, 1]")

    def init(self, rows: int, length: int) -> RowState:
        return {}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        sure = score(view, "confidence")
        passed = sure > self.threshold if self.strict else sure >= self.threshold
        return CommitDecision(passed & view.masked | first(sure, torch.ones_like(view.step))), state

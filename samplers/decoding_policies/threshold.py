"""Threshold: every token that is sure enough, and always the surest (Fast-dLLM)."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.fields import check_fields
from gen.samplers.decoding_policies.lib.score import score, top_positions
from gen.text.contracts import CommitDecision, DecodingPolicy, RowState, StepView

__all__ = ["Threshold"]


@dataclass(frozen=True)
class Threshold(DecodingPolicy):
    """Commits every token whose probability reaches a threshold, and the likeliest one (Wu et al. 2025).

    With tokens that depend on one another no threshold is safe: of n tokens with probability p each, the joint need
    only have 1 - n (1 - p).

    Attributes:
        threshold: least probability.
        strict: the probability must exceed it, as in Fast-dLLM v2 and diffusers' BlockRefinementScheduler.
    """

    threshold: float = 0.9
    strict: bool = False

    def __post_init__(self) -> None:
        check_fields(self, threshold="[0, 1]")

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        confidence = score(view, "confidence")
        passed = confidence > self.threshold if self.strict else confidence >= self.threshold
        return CommitDecision(passed & view.masked | top_positions(confidence)), state

"""Entropy: every token whose distribution is narrow enough (dParallel, d3LLM)."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.fields import check_fields
from gen.samplers.decoding_policies.lib.score import score, top_positions
from gen.text.contracts import CommitDecision, DecodingPolicy, RowState, StepView

__all__ = ["Entropy"]


@dataclass(frozen=True)
class Entropy(DecodingPolicy):
    """Commits every token of low enough entropy, and always the one of the lowest (Chen et al. 2025, dParallel).

    Made for models distilled to be certain; on others it is as blind to dependence as any threshold.

    Attributes:
        threshold: largest entropy in nats; 0.4 to 0.5 as published.
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, threshold="[0, inf)")

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        negative_entropy = score(view, "entropy")
        return CommitDecision((negative_entropy >= -self.threshold) | top_positions(negative_entropy)), state

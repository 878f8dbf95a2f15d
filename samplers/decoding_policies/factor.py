"""Factor: the surer the tokens, the more of them at once (Fast-dLLM)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gen.config.fields import check_fields
from gen.samplers.decoding_policies.lib.score import score, top_positions
from gen.text.contracts import CommitDecision, DecodingPolicy, RowState, StepView

__all__ = ["Factor"]


@dataclass(frozen=True)
class Factor(DecodingPolicy):
    """Commits the n likeliest tokens, n the most for which each of them has c_(i) > 1 - factor / (i + 1); at least one.

    With factor <= 1 and the likeliest tokens taken (temperature 0) those n are the likeliest ones under the joint
    distribution too, however they depend on one another (Wu et al. 2025, theorem 1); beyond, nothing is promised.
    Public code breaks out of its loop at the first failure and cannot tell a failure of the last token from none: it
    commits both of (.99, .5) at factor 1, where this commits one.

    Attributes:
        factor: larger commits more.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, factor="(0, inf)")

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        confidence = score(view, "confidence")
        n = torch.arange(1, confidence.shape[-1] + 1, device=confidence.device, dtype=confidence.dtype)
        passed = confidence.sort(-1, descending=True).values > 1 - self.factor / (n + 1)
        count = passed.sum(-1).clamp(min=1)  # the bar rises as c falls: those that pass are the first ones
        return CommitDecision(top_positions(confidence, count)), state

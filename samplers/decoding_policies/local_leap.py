"""LocalLeap: near a sure token, less sure ones are committed too."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gen.config.fields import check_fields
from gen.samplers.decoding_policies.lib.score import score, top_positions
from gen.text.contracts import CommitDecision, DecodingPolicy, RowState, StepView

__all__ = ["LocalLeap"]


@dataclass(frozen=True)
class LocalLeap(DecodingPolicy):
    """Commits sure tokens (anchors), less sure ones near an anchor of the window, and the likeliest of all.

    Kong et al. 2025, arXiv 2510.07081.

    Attributes:
        anchor: least probability of an anchor.
        near: least probability of a token near one.
        radius: largest distance of such a token, in positions.
    """

    anchor: float = 0.9
    near: float = 0.75
    radius: int = 4

    def __post_init__(self) -> None:
        check_fields(self, near="[0, 1]", anchor="[near, 1]", radius="[0, inf)")

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        confidence = score(view, "confidence")
        anchors = confidence >= self.anchor
        reach = torch.nn.functional.max_pool1d(anchors.float()[:, None], 2 * self.radius + 1, 1, self.radius)[:, 0] > 0
        commit = anchors | (reach & (confidence >= self.near)) | top_positions(confidence)
        return CommitDecision(commit), state

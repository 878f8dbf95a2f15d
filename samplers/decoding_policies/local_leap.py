"""LocalLeap: near a sure token, less sure ones will do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gen.config.errors import UserError
from gen.samplers.decoding_policies.lib.score import first, score
from gen.text.contracts import CommitDecision, RowState, StepView

__all__ = ["LocalLeap"]


@dataclass(frozen=True)
class LocalLeap:
    """Commits tokens of probability >= `anchor`, those >= `near` at most `radius` places from one, and the likeliest.

    All within the window (Kong et al. 2025, arXiv 2510.07081).
    """

    anchor: float = 0.9
    near: float = 0.75
    radius: int = 4
    may_skip: ClassVar[bool] = False
    order_depends_on_samples: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.near <= self.anchor <= 1 or self.radius < 0:
            raise UserError(f"{self}; 0 <= near <= anchor <= 1 and radius >= 0")

    def init(self, rows: int, length: int) -> RowState:
        return {}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        sure = score(view, "confidence")
        anchors = sure >= self.anchor
        reach = torch.nn.functional.max_pool1d(anchors.float()[:, None], 2 * self.radius + 1, 1, self.radius)[:, 0] > 0
        commit = anchors | (reach & (sure >= self.near)) | first(sure, torch.ones_like(view.step))
        return CommitDecision(commit), state

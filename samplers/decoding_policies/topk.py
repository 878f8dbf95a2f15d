"""Top-k: a fixed number of tokens at each step, the best by some score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gen.config.errors import UserError
from gen.samplers.decoding_policies.lib.score import Score, even, first, score
from gen.text.contracts import CommitDecision, RowState, StepView

__all__ = ["TopK"]


@dataclass(frozen=True)
class TopK:
    """Commits the k best tokens of a window at each step or, with `steps`, all of them in so many steps (LLaDA).

    steps: of each window; its masks are shared out evenly, the first steps taking one more where that does not go. More
    steps than masks are one token at a time. score: see gen.samplers.decoding_policies.lib.score; LLaDA's code has
    "sample". One random place at a time is the first-hitting sampler of BD3-LM (Arriola et al. 2025).
    """

    k: int = 1
    score: Score = "confidence"
    steps: int | None = None
    may_skip: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.k < 1 or (self.steps is not None and self.steps < 1):
            raise UserError(f"TopK: k = {self.k}, steps = {self.steps}; both must be at least 1")

    @property
    def order_depends_on_samples(self) -> bool:
        return self.score == "sample"

    def init(self, rows: int, length: int) -> RowState:
        return {}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        count = torch.full_like(view.step, self.k)
        if self.steps is not None:
            count = even(view.mask_budget, view.step, self.steps)
        return CommitDecision(first(score(view, self.score), count)), state

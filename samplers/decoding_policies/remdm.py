"""ReMDM: late in a window the least sure tokens become masks again and are guessed anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gen.config.errors import UserError
from gen.samplers.decoding_policies.lib.score import Score, even, first, recall, score, store
from gen.text.contracts import CommitDecision, RowState, StepView

__all__ = ["ReMDM"]


@dataclass(frozen=True)
class ReMDM:
    """Commits as top-k does, but after a share `after` of a window's steps inserts `times` steps that revise.

    Before each of those, the `count` tokens with the lowest probability when they were drawn become masks; then as many
    are committed (Wang et al. 2025 with the loop schedule, as in ReMDM-LLaDA). A token is not revised in the step that
    committed it, as it is in public code: nothing would have changed since. steps: of each window, the inserted ones
    not counted; None: as many as it has masks.
    """

    steps: int | None = None
    times: int = 1
    count: int = 1
    after: float = 7 / 8
    score: Score = "confidence"
    may_skip: ClassVar[bool] = False
    order_depends_on_samples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if (self.steps is not None and self.steps < 1) or self.times < 0 or self.count < 1 or not 0 < self.after <= 1:
            raise UserError(f"{self}; steps >= 1, times >= 0, count >= 1 and 0 < after <= 1")

    def init(self, rows: int, length: int) -> RowState:
        return {"sure": torch.zeros(rows, length)}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        step, most = view.step, view.mask_budget.clamp(min=1)
        steps = most if self.steps is None else most.clamp(max=self.steps)
        turn = torch.minimum((steps * self.after).long(), steps - 1).clamp(min=1)  # the first step that revises
        count = even(view.mask_budget, torch.where(step < turn + self.times, step, step - self.times), steps)
        count = torch.where(self.revises(step, turn), self.count, count)
        commit = first(score(view, self.score), count)
        sure = recall(state["sure"], view).masked_fill(~view.in_window | view.prompt_or_pad | view.masked, torch.inf)
        again = torch.where(self.revises(step + 1, turn), self.count, 0)
        return CommitDecision(commit, remask=first(-sure, again)), {
            "sure": store(state["sure"], view, commit, view.sampled_probability)
        }

    def revises(self, step: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
        return (step >= turn) & (step < turn + self.times)

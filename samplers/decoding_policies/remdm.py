"""ReMDM: late in a window the least sure tokens become masks again and are predicted anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.samplers.decoding_policies.lib.score import (
    Score,
    even_share,
    gather_memory,
    scatter_memory,
    score,
    top_positions,
)
from gen.text.contracts import CommitDecision, DecodingPolicy, RowState, StepView

__all__ = ["ReMDM"]


@dataclass(frozen=True)
class ReMDM(DecodingPolicy):
    """Commits as top-k does, but late in a window inserts steps that revise.

    Before each of those, the tokens with the lowest probability when they were drawn become masks; then as many are
    committed (Wang et al. 2025 with the loop schedule, as in ReMDM-LLaDA). A token is not revised in the step that
    committed it, as it is in public code: nothing would have changed since.

    Attributes:
        steps: of each window, the inserted ones not counted; None: as many as it has masks.
        times: inserted steps.
        count: tokens that each of them revises.
        after: share of the steps that comes before them.
        score: which tokens are committed first; see gen.samplers.decoding_policies.lib.score.
    """

    steps: int | None = None
    times: int = 1
    count: int = 1
    after: float = 7 / 8
    score: Score = "confidence"
    order_depends_on_samples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, steps="[1, inf)", times="[0, inf)", count="[1, inf)", after="(0, 1]")

    def init(self, rows: int, length: int) -> RowState:
        return {"confidence": torch.zeros(rows, length)}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        step, budget = view.step, view.mask_budget.clamp(min=1)
        steps = budget if self.steps is None else budget.clamp(max=self.steps)
        first = torch.minimum((steps * self.after).long(), steps - 1).clamp(min=1)  # the first step that revises
        count = even_share(view.mask_budget, torch.where(step < first + self.times, step, step - self.times), steps)
        count = torch.where(self.revises(step, first), self.count, count)
        commit = top_positions(score(view, self.score), count)
        drawn_with = gather_memory(state["confidence"], view)
        drawn_with = drawn_with.masked_fill(~view.in_window | view.prompt_or_pad | view.masked, torch.inf)
        again = torch.where(self.revises(step + 1, first), self.count, 0)
        memory = scatter_memory(state["confidence"], view, commit, view.sampled_probability)
        return CommitDecision(commit, remask=top_positions(-drawn_with, again)), {"confidence": memory}

    def revises(self, step: Tensor, first: Tensor) -> Tensor:
        """Return whether a step is one of the inserted ones, [B]."""
        return (step >= first) & (step < first + self.times)

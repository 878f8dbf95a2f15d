"""RCR: all masks are committed at each step, and the least sure of all tokens become masks again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gen.config.errors import UserError
from gen.samplers.decoding_policies.lib.score import first, recall, store
from gen.text.contracts import CommitDecision, RowState, StepView

__all__ = ["RCR"]


@dataclass(frozen=True)
class RCR:
    """Keeps the tokens of a window with the largest running confidence, as many as are due by now; masks the others.

    A token's running confidence is the probability that it had when it was drawn; every masked place draws a new one at
    each step (He et al. 2025, arXiv 2508.13148). steps: of each window, the tokens due grow evenly; None: by one a
    step. They grow by one at least, so it ends.
    """

    steps: int | None = None
    may_skip: ClassVar[bool] = False
    order_depends_on_samples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps is not None and self.steps < 1:
            raise UserError(f"RCR: steps = {self.steps}; it must be at least 1")

    def init(self, rows: int, length: int) -> RowState:
        return {"sure": torch.zeros(rows, length)}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        ours = view.in_window & ~view.prompt_or_pad
        steps = view.mask_budget.clamp(min=1) if self.steps is None else torch.full_like(view.mask_budget, self.steps)
        left = view.mask_budget * (steps - view.step - 1).clamp(min=0) // steps
        left = torch.minimum(left, view.masked.sum(-1) - 1).clamp(min=0)
        sure = torch.where(view.masked, view.sampled_probability, recall(state["sure"], view))
        keep = first(sure.masked_fill(~ours, -torch.inf), ours.sum(-1) - left)
        commit = keep & view.masked
        return CommitDecision(commit, remask=ours & ~view.masked & ~keep), {
            "sure": store(state["sure"], view, commit, sure)
        }

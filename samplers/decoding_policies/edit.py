"""Edit: what was written may still be corrected, in the block it stands in (LLaDA 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from gen.config.errors import UserError
from gen.samplers.decoding_policies.lib.score import even, first, score
from gen.text.contracts import CommitDecision, RowState, StepView

__all__ = ["Edit"]


@dataclass(frozen=True)
class Edit:
    """Commits the tokens above `threshold` if they are as many as are due, else as many as are due; corrects others.

    In the window a token is replaced where another one was drawn with a probability above `edit` (None: never). When no
    mask is left there, corrections go on while there are any, for at most `post` evaluations, so that two tokens that
    suggest each other's change end too. The rule is that of diffusers' BlockRefinementScheduler, whose score is
    "sample". steps: of each window, its masks are due in even shares; None: one at each step.
    """

    threshold: float = 0.7
    edit: float | None = 0.5
    post: int = 16
    steps: int | None = None
    score: Literal["confidence", "sample"] = "confidence"
    may_skip: ClassVar[bool] = False
    order_depends_on_samples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1 or (self.edit is not None and not 0 <= self.edit <= 1):
            raise UserError(f"Edit: threshold = {self.threshold}, edit = {self.edit}; both must be in [0, 1]")
        if self.post < 0 or (self.steps is not None and self.steps < 1):
            raise UserError(f"Edit: post = {self.post}, steps = {self.steps}; post >= 0 and steps >= 1")

    def init(self, rows: int, length: int) -> RowState:
        return {"post": torch.zeros(rows, dtype=torch.int64)}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        sure = score(view, self.score)
        due = torch.ones_like(view.step) if self.steps is None else even(view.mask_budget, view.step, self.steps)
        passed = sure > self.threshold
        commit = torch.where((passed.sum(-1) >= due)[:, None], passed, first(sure, due))
        if self.edit is None:
            return CommitDecision(commit), state
        ours = view.in_window & ~view.prompt_or_pad & ~view.masked
        edit = ours & (view.sampled != view.tokens) & (view.sampled_probability > self.edit)
        after = ~view.masked.any(-1)  # this evaluation was of a window without masks
        post = torch.where(view.step == 0, 0, state["post"].to(view.positions)) + after
        goes_on = (~after | edit.any(-1)) & (post < self.post)
        return CommitDecision(commit, edit=edit, hold=goes_on & ~(view.masked & ~commit).any(-1)), {"post": post}

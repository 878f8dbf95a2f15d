"""Edit: tokens of the current block may still be corrected (LLaDA 2.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from gen.config.fields import check_fields
from gen.samplers.decoding_policies.lib.score import even_share, score, top_positions
from gen.text.contracts import CommitDecision, DecodingPolicy, RowState, StepView

__all__ = ["Edit"]


@dataclass(frozen=True)
class Edit(DecodingPolicy):
    """Commits the tokens above a threshold, or as many as are due if those are fewer; corrects committed ones.

    The rule of diffusers' BlockRefinementScheduler, whose score is "sample".

    Attributes:
        threshold: tokens whose score exceeds it are committed.
        edit: a token of the window is replaced where another one was proposed with a probability above this; None for
            never.
        post: evaluations of a window without masks, at most: corrections go on while there are any, and two tokens
            that suggest each other's change end too.
        steps: of each window: its masks are due in even shares; None: one at each step.
        score: "confidence", or "sample" (see gen.samplers.decoding_policies.lib.score).
    """

    threshold: float = 0.7
    edit: float | None = 0.5
    post: int = 16
    steps: int | None = None
    score: Literal["confidence", "sample"] = "confidence"
    order_depends_on_samples: ClassVar[bool] = True
    edits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, threshold="[0, 1]", edit="[0, 1]", post="[0, inf)", steps="[1, inf)")

    def init(self, rows: int, length: int) -> RowState:
        return {"post": torch.zeros(rows, dtype=torch.int64)}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        value = score(view, self.score)
        due = torch.ones_like(view.step) if self.steps is None else even_share(view.mask_budget, view.step, self.steps)
        passed = value > self.threshold
        commit = torch.where((passed.sum(-1) >= due)[:, None], passed, top_positions(value, due))
        if self.edit is None:
            return CommitDecision(commit), state
        committed = view.in_window & ~view.prompt_or_pad & ~view.masked
        edit = committed & (view.sampled != view.tokens) & (view.sampled_probability > self.edit)
        full = ~view.masked.any(-1)  # this evaluation was of a window without masks
        post = torch.where(view.step == 0, 0, state["post"].to(view.positions)) + full
        goes_on = (~full | edit.any(-1)) & (post < self.post)
        return CommitDecision(commit, edit=edit, hold=goes_on & ~(view.masked & ~commit).any(-1)), {"post": post}

"""RCR: all masks are committed at each step, and the least sure of all tokens become masks again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gen.config.fields import check_fields
from gen.samplers.decoding_policies.lib.score import gather_memory, scatter_memory, top_positions
from gen.text.contracts import CommitDecision, DecodingPolicy, RowState, StepView

__all__ = ["RCR"]


@dataclass(frozen=True)
class RCR(DecodingPolicy):
    """Keeps the tokens of a window with the largest running confidence, as many as are due; masks the others.

    A token's running confidence is the probability that it had when it was drawn; every mask draws a new one at each
    step (He et al. 2025, arXiv 2508.13148). The number of kept tokens grows by one at least, so it ends.

    Attributes:
        steps: of each window, in which the number of kept tokens grows evenly; None: by one a step.
    """

    steps: int | None = None
    order_depends_on_samples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, steps="[1, inf)")

    def init(self, rows: int, length: int) -> RowState:
        return {"confidence": torch.zeros(rows, length)}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        window, budget = view.in_window & ~view.prompt_or_pad, view.mask_budget
        steps = budget.clamp(min=1) if self.steps is None else torch.full_like(budget, self.steps)
        left = budget * (steps - view.step - 1).clamp(min=0) // steps
        left = torch.minimum(left, view.masked.sum(-1) - 1).clamp(min=0)
        running = torch.where(view.masked, view.sampled_probability, gather_memory(state["confidence"], view))
        keep = top_positions(running.masked_fill(~window, -torch.inf), window.sum(-1) - left)
        commit = keep & view.masked
        memory = scatter_memory(state["confidence"], view, commit, running)
        return CommitDecision(commit, remask=window & ~view.masked & ~keep), {"confidence": memory}

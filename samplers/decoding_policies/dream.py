"""Dream: the number of committed tokens follows a grid of times; a score chooses them, if need be at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gen.config.fields import check_fields
from gen.samplers.decoding_policies.lib.score import Score, score, top_positions
from gen.text.contracts import CommitDecision, DecodingPolicy, RowState, StepView

__all__ = ["Dream"]


@dataclass(frozen=True)
class Dream(DecodingPolicy):
    """Commits floor(masks (1 - s / t)) tokens in a step from t to s; the last step commits all (Ye et al. 2025).

    Each text's own masks count (public code takes their mean over the batch). Rounding down, the first steps often
    commit nothing and so cost nothing.

    Attributes:
        steps: even steps of t from 1 to eps, in each window.
        score: what is best; Dream's entropy, topk_margin and maskgit_plus are "entropy", "margin" and "sample".
        alg_temp: > 0 draws positions without replacement with probabilities softmax(score / alg_temp), by Gumbel
            noise; 0 takes the best.
        eps: the last time.
    """

    steps: int = 32
    score: Score = "entropy"
    alg_temp: float = 0.0
    eps: float = 1e-3
    may_skip: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, steps="[1, inf)", alg_temp="[0, inf)", eps="[0, 1)")

    @property
    def order_depends_on_samples(self) -> bool:
        return self.score == "sample"

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        masks = view.masked.sum(-1)
        t, s = (1 - (1 - self.eps) * (view.step + k).double() / self.steps for k in (0, 1))
        count = torch.where(view.step >= self.steps - 1, masks, (masks * (1 - s / t)).long())
        value = score(view, self.score)
        if self.alg_temp:
            u = view.uniform("gumbel").clamp(1e-300, 1 - 1e-16)
            value = value.double() / self.alg_temp - (-u.log()).log()
        return CommitDecision(top_positions(value, count)), state

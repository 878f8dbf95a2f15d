"""Dream: how many tokens are committed follows a grid of times, which ones a score, if need be by lot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gen.config.errors import UserError
from gen.samplers.decoding_policies.lib.score import Score, first, score
from gen.text.contracts import CommitDecision, RowState, StepView

__all__ = ["Dream"]


@dataclass(frozen=True)
class Dream:
    """Commits floor(masks (1 - s / t)) tokens in a step from t to s, of `steps` even ones from 1 to eps; the last, all.

    Each row's own masks count (public code takes their mean over the batch). score: which are best; Dream's entropy,
    topk_margin and maskgit_plus are "entropy", "margin" and "sample". alg_temp > 0: places are drawn without
    replacement with probabilities softmax(score / alg_temp), by Gumbel noise. Rounding down, the first steps often
    commit nothing and so cost nothing. The steps are those of a window (Ye et al. 2025).
    """

    steps: int = 32
    score: Score = "entropy"
    alg_temp: float = 0.0
    eps: float = 1e-3
    may_skip: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.alg_temp >= 0 or not 0 <= self.eps < 1:
            raise UserError(f"{self}; steps >= 1, alg_temp >= 0 and 0 <= eps < 1")

    @property
    def order_depends_on_samples(self) -> bool:
        return self.score == "sample"

    def init(self, rows: int, length: int) -> RowState:
        return {}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        masks = view.masked.sum(-1)
        t, s = (1 - (1 - self.eps) * (view.step + k).double() / self.steps for k in (0, 1))
        count = torch.where(view.step >= self.steps - 1, masks, (masks * (1 - s / t)).long())
        value = score(view, self.score)
        if self.alg_temp:
            u = view.uniform("gumbel").clamp(1e-300, 1 - 1e-16)
            value = value.double() / self.alg_temp - (-u.log()).log()
        return CommitDecision(first(value, count)), state

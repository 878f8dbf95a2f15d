"""Top-k: a fixed number of tokens at each step, the best by a score."""

from __future__ import annotations

from dataclasses import dataclass

from gen.config.fields import check_fields
from gen.samplers.decoding_policies.lib.score import Score, even_share, score, top_positions
from gen.text.contracts import CommitDecision, DecodingPolicy, RowState, StepView

__all__ = ["TopK"]


@dataclass(frozen=True)
class TopK(DecodingPolicy):
    """Commits the k best tokens of a window at each step or, with `steps`, all of them in so many steps (LLaDA).

    One random position at a time is the first-hitting sampler of BD3-LM (Arriola et al. 2025).

    Attributes:
        k: tokens of a step.
        score: what is best; see gen.samplers.decoding_policies.lib.score; LLaDA's code has "sample".
        steps: of each window: its masks are shared out evenly, the first steps taking one more where that does not go;
            more steps than masks are one token at a time. None for k at each step.
    """

    k: int = 1
    score: Score = "confidence"
    steps: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, k="[1, inf)", steps="[1, inf)")

    @property
    def order_depends_on_samples(self) -> bool:
        return self.score == "sample"

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        count = self.k if self.steps is None else even_share(view.mask_budget, view.step, self.steps)
        return CommitDecision(top_positions(score(view, self.score), count)), state

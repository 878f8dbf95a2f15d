"""End of sequence: an end-of-text token with no mask before it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.samplers.stopping_rules.lib.masks import is_eos
from gen.text.contracts import Predictor, RowState, StepView, StopDecision, StoppingRule
from gen.text.gaps import count_before
from gen.text.host import known_to_be_none

__all__ = ["EOS"]


@dataclass(frozen=True)
class EOS(StoppingRule):
    """The text ends with the predictor's first end-of-text token once nothing before it is masked any more.

    So does each gap of a prompt that has some, and the text with the last of them.
    """

    def check(
        self, view: StepView, tokens: Tensor, gap_start: Tensor, predictor: Predictor, state: RowState
    ) -> tuple[StopDecision, RowState]:
        inside = gap_start >= 0
        ends = is_eos(tokens, predictor) & inside
        if known_to_be_none(ends):  # as at most steps
            return StopDecision(ends[:, 0]), state
        masks = (tokens == predictor.mask_token_id) & inside
        ends = ends & (count_before(masks, gap_start) == 0)
        left = masks & (count_before(ends, gap_start) == 0)
        return StopDecision(ends.any(1) & ~left.any(1), ends=ends), state

"""End of sequence: an end-of-text token with no mask before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.samplers.stopping_rules.lib.masks import is_eos
from gen.text.contracts import Predictor, RowState, StepView, StopDecision, StoppingRule, positions_between

__all__ = ["EOS"]


@dataclass(frozen=True)
class EOS(StoppingRule):
    """The text ends with the predictor's first end-of-text token once nothing before it is masked any more."""

    def check(
        self, view: StepView, tokens: Tensor, text_end: Tensor, predictor: Predictor, state: RowState
    ) -> tuple[StopDecision, RowState]:
        n = tokens.shape[1]
        positions = torch.arange(n, device=tokens.device)
        inside = positions_between(n, view.prompt_end, text_end)
        eos = torch.where(is_eos(tokens, predictor) & inside, positions, n).amin(1)
        mask = torch.where((tokens == predictor.mask_token_id) & inside, positions, n).amin(1)
        done = eos < mask
        return StopDecision(done, text_end=torch.where(done, eos + 1, text_end)), state

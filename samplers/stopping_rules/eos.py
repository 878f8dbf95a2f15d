"""End of sequence: a stop token with no mask before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.samplers.stopping_rules.lib.predicted import is_stop
from gen.text.contracts import Predictor, RowState, StepView, StopDecision, positions_between

__all__ = ["EOS"]


@dataclass(frozen=True)
class EOS:
    """The text ends with the first of the predictor's stop tokens once nothing before it is masked any more."""

    whole_text: ClassVar[bool] = False

    def init(self, rows: int, length: int) -> RowState:
        return {}

    def check(
        self, view: StepView, tokens: Tensor, prompt_end: Tensor, text_end: Tensor, f: Predictor, state: RowState
    ) -> tuple[StopDecision, RowState]:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        inside = positions_between(tokens.shape[1], prompt_end, text_end)
        stops = is_stop(tokens, f) & inside
        far = tokens.shape[1]
        stop = torch.where(stops, places, far).amin(1)
        mask = torch.where((tokens == f.mask_token_id) & inside, places, far).amin(1)
        done = stop < mask
        return StopDecision(done, text_end=torch.where(done, stop + 1, text_end)), state

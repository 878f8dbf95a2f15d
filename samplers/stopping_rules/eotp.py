"""EoTP: a text is cut where its end is foreseen (Learn2PD)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.samplers.stopping_rules.lib.predicted import is_stop, open_places
from gen.text.contracts import Predictor, RowState, StepView, StopDecision

__all__ = ["EoTP"]


@dataclass(frozen=True)
class EoTP:
    """Cuts the text after the first masked place whose likeliest token is a stop token of probability >= `threshold`.

    What lies behind is no longer computed, masks before it are decoded on (Bao et al. 2025, end-of-text prediction).
    Public code cuts at the surest stop token if its filter accepts none, wherever that lies: valid text may be lost, or
    a tail of stop tokens kept. Here none is taken that is not sure, and the first of those that are. whole_text: look
    at the whole text, not at the window only (which is what a cache may compute).
    """

    threshold: float = 0.9
    whole_text: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"EoTP: threshold = {self.threshold}; it must be in [0, 1]")

    def init(self, rows: int, length: int) -> RowState:
        return {}

    def check(
        self, view: StepView, tokens: Tensor, prompt_end: Tensor, text_end: Tensor, f: Predictor, state: RowState
    ) -> tuple[StopDecision, RowState]:
        now = tokens.gather(1, view.positions)  # another token may have been drawn and committed
        foreseen = open_places(view) & is_stop(view.top_token, f) & (view.confidence >= self.threshold)
        far = tokens.shape[1]
        place = torch.where(foreseen & ((now == f.mask_token_id) | is_stop(now, f)), view.positions, far).amin(1)
        return StopDecision(
            torch.zeros_like(text_end, dtype=torch.bool), text_end=torch.where(place < far, place + 1, text_end)
        ), state

"""EoTP: a text is cut where its end is predicted (Learn2PD)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.samplers.stopping_rules.lib.masks import is_eos, open_masks
from gen.text.contracts import Predictor, RowState, StepView, StopDecision, StoppingRule

__all__ = ["EoTP"]


@dataclass(frozen=True)
class EoTP(StoppingRule):
    """Cuts the text, or a gap of it, after the first mask whose likeliest token ends a text and is sure enough.

    What lies behind is no longer computed, masks before it are decoded on (Bao et al. 2025, end-of-text prediction).
    Public code cuts at the surest end-of-text token if its filter accepts none, wherever that lies: valid text may be
    lost, or a tail of such tokens kept. Here none is taken that is not sure, and the first of those that are.

    Attributes:
        threshold: least probability.
        whole_text: look at the whole text, not at the window only (which is what a KV plan may compute).
    """

    threshold: float = 0.9
    whole_text: bool = True

    def __post_init__(self) -> None:
        check_fields(self, threshold="[0, 1]")

    def check(
        self, view: StepView, tokens: Tensor, gap_start: Tensor, predictor: Predictor, state: RowState
    ) -> tuple[StopDecision, RowState]:
        now = tokens.gather(1, view.positions)  # another token may have been drawn and committed
        ends = open_masks(view) & is_eos(view.top_token, predictor) & (view.confidence >= self.threshold)
        ends = ends & ((now == predictor.mask_token_id) | is_eos(now, predictor))
        n = tokens.shape[1]
        on_canvas = torch.zeros(len(tokens), n + 1, dtype=torch.bool, device=tokens.device)
        on_canvas = on_canvas.scatter(1, torch.where(ends, view.positions, n), ends)[:, :n]
        return StopDecision(torch.zeros_like(on_canvas[:, 0]), ends=on_canvas), state

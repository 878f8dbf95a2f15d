"""Adaptive: the predicted text no longer changes and is nearly certain (DiffusionGemma)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.samplers.stopping_rules.lib.masks import masked_mean, open_masks
from gen.text.contracts import Predictor, RowState, StepView, StopDecision, StoppingRule

__all__ = ["Adaptive"]


@dataclass(frozen=True)
class Adaptive(StoppingRule):
    """Fills all masks once the predicted text was the same in the last evaluations and its mean entropy is low.

    The predicted text: what is committed, and the likeliest tokens of the masks. Each text by itself, as in diffusers'
    pipeline for DiffusionGemma, where the mean is over all positions; here it is over the masks, the only ones in
    doubt.

    Attributes:
        stable: evaluations before this one in which the text was the same.
        entropy: bound of the mean entropy, nats.
    """

    stable: int = 1
    entropy: float = 0.005
    whole_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, stable="[0, inf)", entropy="[0, inf)")

    def init(self, rows: int, length: int) -> RowState:
        return {"guess": torch.full((rows, length), -1), "same": torch.zeros(rows, dtype=torch.int64)}

    def check(
        self, view: StepView, tokens: Tensor, gap_start: Tensor, predictor: Predictor, state: RowState
    ) -> tuple[StopDecision, RowState]:
        masks = open_masks(view)
        guess = torch.where(masks, view.top_token, view.tokens)
        before, same = state["guess"].to(view.positions), state["same"].to(view.positions)
        changed = ((before.gather(1, view.positions) != guess) & ~view.prompt_or_pad).any(-1)
        same = torch.where(changed, 0, same + 1)
        n = before.shape[1]
        slots = torch.where(view.prompt_or_pad, n, view.positions)
        before = torch.cat([before, before[:, :1]], 1).scatter(1, slots, guess)[:, :n]
        sure = (same >= self.stable) & (masked_mean(view.entropy, masks) < self.entropy)
        return StopDecision(sure, fill=sure), {"guess": before, "same": same}

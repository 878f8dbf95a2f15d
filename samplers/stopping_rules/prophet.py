"""Prophet: once the answer is certain enough, all that is left is filled at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.samplers.stopping_rules.lib.masks import masked_mean, open_masks
from gen.text.contracts import Predictor, RowState, StepView, StopDecision, StoppingRule

__all__ = ["Prophet"]


@dataclass(frozen=True)
class Prophet(StoppingRule):
    """Fills all masks with their likeliest tokens once the two likeliest are far enough apart (Li et al. 2025).

    Apart: the mean of log p1 - log p2. Enough: one of `gaps`, by how much of the text is committed, this step's tokens
    included. The paper (arXiv 2508.19982) counts steps of a fixed number, the current one included in its code, which
    is the same at an even pace, and knows no rule without a region. The fill is one parallel step: tokens that depend
    on one another may disagree.

    Attributes:
        gaps: nats needed while the committed share is below until[0], below until[1], and from there on.
        until: two rising shares in [0, 1].
        region: the answer's positions, counted from the text's start: the first, and the one after the last; None for
            the mean over all masks.
    """

    gaps: tuple[float, float, float] = (7.5, 5.0, 2.5)
    until: tuple[float, float] = (0.33, 0.67)
    region: tuple[int, int] | None = None
    whole_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.until[0] <= self.until[1] <= 1:
            raise UserError(f"Prophet: until = {self.until}; two rising shares in [0, 1]")
        if self.region is not None and not 0 <= self.region[0] < self.region[1]:
            raise UserError(f"Prophet: region = {self.region}; a first position >= 0 and the one after the last")

    def check(
        self, view: StepView, tokens: Tensor, gap_start: Tensor, predictor: Predictor, state: RowState
    ) -> tuple[StopDecision, RowState]:
        masks = open_masks(view)
        where = masks
        if self.region is not None:
            index = view.positions - view.prompt_end[:, None]
            where = (index >= self.region[0]) & (index < self.region[1]) & ~view.prompt_or_pad
        pair = view.top2[0]
        gap = masked_mean(pair[..., 0] - pair[..., 1], where)
        left = masks & (tokens.gather(1, view.positions) == predictor.mask_token_id)
        committed = 1 - left.sum(-1) / (gap_start >= 0).sum(-1)
        needed = torch.where(committed < self.until[0], self.gaps[0], self.gaps[2])
        needed = torch.where((committed >= self.until[0]) & (committed < self.until[1]), self.gaps[1], needed)
        sure = (gap >= needed) & where.any(-1) & masks.any(-1)
        return StopDecision(sure, fill=sure), state

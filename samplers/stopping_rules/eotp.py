"""EoTP: a text is cut where its end is foreseen (Learn2PD)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.samplers.stopping_rules.lib.predicted import is_stop, open_places
from gen.text.contracts import State, Verdict, View
from gen.text.predictor import Predictor

__all__ = ["EoTP"]


@dataclass(frozen=True)
class EoTP:
    """Cuts the text after the first masked place whose likeliest token is a stop token of probability >= `threshold`.

    What lies behind is no longer computed, masks before it are decoded on (Bao et al. 2025, end-of-text prediction).
    Public code cuts at the surest stop token if its filter accepts none, wherever that lies: valid text may be lost, or
    a tail of stop tokens kept. Here none is taken that is not sure, and the first of those that are. whole: look at the
    whole text, not at the window only (which is what a cache may compute).
    """

    threshold: float = 0.9
    whole: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"EoTP: threshold = {self.threshold}; it must be in [0, 1]")

    def init(self, rows: int, length: int) -> State:
        return {}

    def check(
        self, view: View, tokens: Tensor, start: Tensor, end: Tensor, f: Predictor, state: State
    ) -> tuple[Verdict, State]:
        now = tokens.gather(1, view.at)  # another token may have been drawn and committed
        foreseen = open_places(view) & is_stop(view.best, f) & (view.confidence >= self.threshold)
        far = tokens.shape[1]
        place = torch.where(foreseen & ((now == f.mask) | is_stop(now, f)), view.at, far).amin(1)
        return Verdict(torch.zeros_like(end, dtype=torch.bool), end=torch.where(place < far, place + 1, end)), state

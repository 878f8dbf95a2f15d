"""Adaptive: the guess of the whole text no longer changes and is all but certain (DiffusionGemma)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.samplers.stopping_rules.lib.predicted import mean, open_places
from gen.text.contracts import State, Verdict, View
from gen.text.predictor import Predictor

__all__ = ["Adaptive"]


@dataclass(frozen=True)
class Adaptive:
    """Fills all masks once the likeliest text was the same in the last `stable` evaluations and in this one, and their
    mean entropy is below `entropy` nats.

    The text: what is committed, and the likeliest tokens of the masks. Each row for itself, as in diffusers' pipeline
    for DiffusionGemma, where the mean is over all places; here it is over the masks, the only ones in doubt.
    """

    stable: int = 1
    entropy: float = 0.005
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.stable < 0 or not self.entropy >= 0:
            raise UserError(f"Adaptive: stable = {self.stable}, entropy = {self.entropy}; both at least 0")

    def init(self, rows: int, length: int) -> State:
        return {"guess": torch.full((rows, length), -1), "same": torch.zeros(rows, dtype=torch.int64)}

    def check(
        self, view: View, tokens: Tensor, start: Tensor, end: Tensor, f: Predictor, state: State
    ) -> tuple[Verdict, State]:
        masks = open_places(view)
        guess = torch.where(masks, view.best, view.tokens)
        before, same = state["guess"].to(view.at), state["same"].to(view.at)
        changed = ((before.gather(1, view.at) != guess) & ~view.fixed).any(-1)
        same = torch.where(changed, 0, same + 1)
        n = before.shape[1]
        at = torch.where(view.fixed, n, view.at)
        before = torch.cat([before, before[:, :1]], 1).scatter(1, at, guess)[:, :n]
        sure = (same >= self.stable) & (mean(view.entropy, masks) < self.entropy)
        return Verdict(sure, fill=sure), {"guess": before, "same": same}

"""End of sequence: a stop token with no mask before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.samplers.stopping_rules.lib.predicted import is_stop
from gen.text.contracts import State, Verdict, View, between
from gen.text.predictor import Predictor

__all__ = ["EOS"]


@dataclass(frozen=True)
class EOS:
    """The text ends with the first of the predictor's stop tokens once nothing before it is masked any more."""

    whole: ClassVar[bool] = False

    def init(self, rows: int, length: int) -> State:
        return {}

    def check(
        self, view: View, tokens: Tensor, start: Tensor, end: Tensor, f: Predictor, state: State
    ) -> tuple[Verdict, State]:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        inside = between(tokens.shape[1], start, end)
        stops = is_stop(tokens, f) & inside
        far = tokens.shape[1]
        stop = torch.where(stops, places, far).amin(1)
        mask = torch.where((tokens == f.mask) & inside, places, far).amin(1)
        done = stop < mask
        return Verdict(done, end=torch.where(done, stop + 1, end)), state

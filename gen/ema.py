"""Averages of the weights over training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gen.errors import UserError

__all__ = ["Average", "Classic"]


@dataclass(frozen=True)
class Average:
    """A profile: how far the average moves towards the weights after update n. `label` names its file."""

    label: str = "ema"

    def decay_at(self, update: int) -> float:
        """The share of the old average that stays after update 1, 2, ..."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, average: nn.Module, net: nn.Module, update: int) -> None:
        """One step of the average; buffers, and whatever is not floating point, are copied."""
        rate = 1 - self.decay_at(update)
        torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), rate)
        for ours, theirs in zip(average.buffers(), net.buffers(), strict=True):
            ours.copy_(theirs)


@dataclass(frozen=True)
class Classic(Average):
    """The exponential average with warm-up: decay min(decay, (1 + n) / (10 + n)), so short runs are not all noise."""

    decay: float = 0.9999

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UserError(f"EMA: decay = {self.decay}; it must be in [0, 1)")

    def decay_at(self, update: int) -> float:
        return min(self.decay, (1 + update) / (10 + update))

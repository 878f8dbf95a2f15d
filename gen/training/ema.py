"""Averages of the weights over training."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gen.config.errors import UserError

__all__ = ["Average", "Classic", "Power", "exponent"]


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
        averages: list[Tensor] = list(average.parameters())
        if averages:  # a role without parameters is memory
            torch._foreach_lerp_(averages, list(net.parameters()), 1 - self.decay_at(update))
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


@dataclass(frozen=True)
class Power(Average):
    """The power-function average of EDM2: decay (1 - 1 / n)^(gamma + 1), so weight t counts as t^gamma / n^(gamma + 1).

    It is as long, measured by its standard deviation `std` as a share of the run, at every moment of the run. The
    checkpoints of a run with two of them give any other afterwards: gen.training.posthoc_ema. The label is
    "power-0.050" unless another is given. (Karras et al. 2024, eqs. 123, 126, 127; std 0.05 and 0.10 there.)
    """

    label: str = ""
    std: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.std < 12**-0.5:
            raise UserError(f"Power: std = {self.std}; it must be in (0, {12**-0.5:.4f}), where gamma is positive")
        if not self.label:
            object.__setattr__(self, "label", f"power-{self.std:.3f}")

    @property
    def gamma(self) -> float:
        return exponent(self.std)

    def decay_at(self, update: int) -> float:
        return (1 - 1 / update) ** (self.gamma + 1)


@functools.cache
def exponent(std: float) -> float:
    """gamma of a relative standard deviation: std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), gamma > 0."""
    low, high = 0.0, 1 / std
    while (middle := (low + high) / 2) not in (low, high):
        wide = math.sqrt((middle + 1) / ((middle + 2) ** 2 * (middle + 3))) > std
        low, high = (middle, high) if wide else (low, middle)
    return low

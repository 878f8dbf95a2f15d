"""Averages of the weights over training (EMA)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from gen.config.fields import check_fields

__all__ = ["EMA", "Classic", "Power", "gamma_from_std"]


@dataclass(frozen=True)
class EMA:
    """An averaging profile: average <- decay average + (1 - decay) weights after every update.

    Attributes:
        label: names the average's file, net-LABEL.safetensors, and `weights` in gen.load.
    """

    label: str = "ema"

    def decay_at(self, update: int) -> float:
        """Return the decay after update 1, 2, ..."""
        raise NotImplementedError


@dataclass(frozen=True)
class Classic(EMA):
    """The exponential average with a warm-up, so that short runs are averaged too.

    decay_n = min(decay, (1 + n) / (10 + n)) after update n.

    Attributes:
        label: see EMA.
        decay: the limit, in [0, 1).
    """

    decay: float = 0.9999

    def __post_init__(self) -> None:
        check_fields(self, decay="[0, 1)")

    def decay_at(self, update: int) -> float:
        return min(self.decay, (1 + update) / (10 + update))


@dataclass(frozen=True)
class Power(EMA):
    """The power-function average of EDM2 (Karras et al. 2024, eqs. 123, 126, 127): decay (1 - 1 / n)^(gamma + 1).

    The weights of update t count as t^gamma / n^(gamma + 1). The checkpoints of a run with two such averages give any
    other afterwards: gen.training.posthoc_ema.

    Attributes:
        label: see EMA; default "power-0.050" for std 0.05.
        std: standard deviation of the weighting as a share of the run so far, in (0, 0.2887); EDM2 has 0.05 and 0.10.
    """

    label: str = ""
    std: float = 0.05

    def __post_init__(self) -> None:
        check_fields(self, std=f"(0, {12**-0.5})")  # where gamma is positive
        if not self.label:
            object.__setattr__(self, "label", f"power-{self.std:.3f}")

    @property
    def gamma(self) -> float:
        return gamma_from_std(self.std)

    def decay_at(self, update: int) -> float:
        return (1 - 1 / update) ** (self.gamma + 1)


@functools.cache
def gamma_from_std(std: float) -> float:
    """Solve std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) for gamma > 0.

    Args:
        std: relative standard deviation, in (0, 0.2887).
    """
    low, high = 0.0, 1 / std
    while (middle := (low + high) / 2) not in (low, high):
        too_wide = math.sqrt((middle + 1) / ((middle + 2) ** 2 * (middle + 3))) > std
        low, high = (middle, high) if too_wide else (low, middle)
    return low

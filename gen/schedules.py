"""Learning-rate schedules: pure functions of the update count, so a resumed run is on the same curve."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gen.errors import UserError

__all__ = ["WSD", "Constant", "Cosine", "Linear", "Schedule"]


@dataclass(frozen=True)
class Schedule:
    """warmup: updates over which the rate rises linearly from 0; update n = 0 already has 1 / warmup of it."""

    warmup: int = 0

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise UserError(f"{type(self).__name__}: warmup = {self.warmup}; it must not be negative")

    def after_warmup(self, progress: float) -> float:
        """The factor at progress 0 .. 1 of what follows the warm-up."""
        raise NotImplementedError

    def factor(self, update: int, total: int) -> float:
        """The factor on the peak learning rate at update 0, 1, ..., total - 1."""
        if update < self.warmup:
            return (update + 1) / self.warmup
        return self.after_warmup((update - self.warmup) / max(1, total - self.warmup))


@dataclass(frozen=True)
class Constant(Schedule):
    """The peak rate throughout."""

    def after_warmup(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Linear(Schedule):
    """Down to `floor` of the peak in a straight line."""

    floor: float = 0.0

    def after_warmup(self, progress: float) -> float:
        return 1 - (1 - self.floor) * progress


@dataclass(frozen=True)
class Cosine(Schedule):
    """Down to `floor` of the peak along half a cosine (Loshchilov & Hutter 2017)."""

    floor: float = 0.0

    def after_warmup(self, progress: float) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class WSD(Schedule):
    """Warm-up, stable, decay (Hu et al. 2024, MiniCPM): the peak, then down to `floor` over the last `decay` share."""

    decay: float = 0.2
    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay <= 1:
            raise UserError(f"WSD: decay = {self.decay}; it must be in (0, 1]")

    def after_warmup(self, progress: float) -> float:
        return 1 - (1 - self.floor) * max(0.0, (progress - (1 - self.decay)) / self.decay)

"""Evenly spaced times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.path import NoisePath

__all__ = ["Linear"]


@dataclass(frozen=True)
class Linear:
    """Equal steps in t: the grid of rectified flow.

    Attributes:
        start: the first time, as a fraction of t1.
        last: size of the last step as a fraction of t1, the others sharing the rest equally; None for that of all. SiT,
            REPA and DDT have 0.04, whatever the number of steps.
        stop: the last time, as a fraction of t1; SiT's ODE ends at 0.001 where its networks predict no velocity.
    """

    start: float = 1.0
    last: float | None = None
    stop: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, start="(0, 1]", last="(0, start)", stop="[0, start)")
        if self.stop and self.last is not None:
            raise UserError(f"Linear: last = {self.last} beside stop = {self.stop}; give one of the two")

    def times(self, path: NoisePath, steps: int) -> Tensor:
        if self.last is None:
            return torch.linspace(self.start * path.t1, self.stop * path.t1, steps + 1, dtype=torch.float64)
        before = torch.linspace(self.start, self.last, steps, dtype=torch.float64) * path.t1
        return torch.cat([before, torch.zeros(1, dtype=torch.float64)])

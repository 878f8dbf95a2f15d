"""Evenly spaced times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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
    """

    start: float = 1.0
    last: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, start="(0, 1]", last="(0, start)")

    def times(self, path: NoisePath, steps: int) -> Tensor:
        if self.last is None:
            return torch.linspace(self.start * path.t1, 0, steps + 1, dtype=torch.float64)
        before = torch.linspace(self.start, self.last, steps, dtype=torch.float64) * path.t1
        return torch.cat([before, torch.zeros(1, dtype=torch.float64)])

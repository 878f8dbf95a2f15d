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
    """

    start: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, start="(0, 1]")

    def times(self, path: NoisePath, steps: int) -> Tensor:
        return torch.linspace(self.start * path.t1, 0, steps + 1, dtype=torch.float64)

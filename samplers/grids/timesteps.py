"""The integer timesteps of diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.path import NoisePath

__all__ = ["Timesteps"]


@dataclass(frozen=True)
class Timesteps:
    """Entries k of a table of `total` noise levels, at t = (k + 1) t1 / total, then data (Lin et al. 2024, table 2).

    On the DDPM path k is the time of its networks.

    Attributes:
        spacing: "leading" is k = i (total // steps) + offset, "trailing" round(total - i total / steps) - 1, "linspace"
            round((total - 1) i / (steps - 1)). Only the last two begin in noise, and a single linspace step is entry 0,
            as numpy and so diffusers have it.
        total: entries of the table.
        offset: of leading spacing.
        stop: the entry at which the loop ends, 0 in Stable Diffusion's DDIM and PNDM (set_alpha_to_one false); None
            for clean data, t = 0.
    """

    spacing: Literal["leading", "trailing", "linspace"] = "trailing"
    total: int = 1000
    offset: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, total="[2, inf)", offset="[0, total)", stop="[0, total)")

    def entries(self, steps: int) -> Tensor:
        """Return the entries k, falling, float64 [steps]."""
        if not 1 <= steps <= self.total:
            raise UserError(f"Timesteps: {steps} steps; there are {self.total} to choose from")
        i = torch.arange(steps, dtype=torch.float64)
        if self.spacing == "trailing":
            return (self.total - i * (self.total / steps)).round() - 1
        if self.spacing == "linspace":
            return torch.linspace(0, self.total - 1, steps, dtype=torch.float64).round().flip(0)
        return (i * (self.total // steps)).flip(0) + self.offset

    def times(self, path: NoisePath, steps: int) -> Tensor:
        entries = self.entries(steps)
        if float(entries[0]) >= self.total:
            raise UserError(f"Timesteps: {steps} leading steps from offset {self.offset} leave a table of {self.total}")
        if self.stop is not None and float(entries[-1]) <= self.stop:
            raise UserError(
                f"Timesteps: the last of {steps} steps begins at entry {float(entries[-1]):g}; stop = {self.stop} must "
                "lie below it"
            )
        end = -1 if self.stop is None else self.stop
        return torch.cat([entries + 1, entries.new_tensor([end + 1.0])]) * (path.t1 / self.total)

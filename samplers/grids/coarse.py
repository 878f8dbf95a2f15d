"""A few of the times of a finer grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid
from gen.diffusion.path import NoisePath
from gen.samplers.grids.karras import Karras

__all__ = ["Coarse"]


@dataclass(frozen=True)
class Coarse:
    """Evenly picked times of a finer grid, at which a consistency model was trained (Song et al. 2023, appendix C).

    Attributes:
        inner: the finer grid.
        of: its steps.
    """

    inner: Grid = part("samplers.grids", default=Karras())
    of: int = 40

    def __post_init__(self) -> None:
        check_fields(self, of="[1, inf)")

    def times(self, path: NoisePath, steps: int) -> Tensor:
        if steps > self.of:
            raise UserError(f"Coarse: {steps} steps are more than the {self.of} of the grid they are taken from")
        return self.inner.times(path, self.of)[
            torch.linspace(0, self.of, steps + 1, dtype=torch.float64).round().long()
        ]

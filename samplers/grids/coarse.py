"""A few of the times of a finer grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import part
from gen.diffusion.path import NoisePath
from gen.samplers.grids.karras import Karras

__all__ = ["Coarse"]


@dataclass(frozen=True)
class Coarse:
    """Of the times of `inner` with `of` steps, equally many apart: those that a consistency model was trained at.

    So its few-step sampler picks them in Song et al. 2023 (section 3 and appendix C), but for a search over them.
    """

    inner: Any = part("samplers.grids", default=Karras())
    of: int = 40

    def __post_init__(self) -> None:
        if self.of < 1:
            raise UserError(f"Coarse: of = {self.of}; it must be at least 1")

    def times(self, path: NoisePath, steps: int) -> Tensor:
        if steps > self.of:
            raise UserError(f"Coarse: {steps} steps are more than the {self.of} of the grid they are taken from")
        fine: Tensor = self.inner.times(path, self.of)
        return fine[torch.linspace(0, self.of, steps + 1, dtype=torch.float64).round().long()]

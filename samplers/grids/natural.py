"""The grid that suits the path."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.config.spec import build
from gen.diffusion.contracts import Grid
from gen.diffusion.path import NoisePath

__all__ = ["Natural"]


@dataclass(frozen=True)
class Natural:
    """The grid that suits the path (gen.diffusion.path.NoisePath.natural): karras on EDM, linear on Flow."""

    def on(self, path: NoisePath) -> Grid:
        """Return the path's own grid."""
        grid: Grid = build("samplers.grids", path.natural["grid"])
        return grid

    def times(self, path: NoisePath, steps: int) -> Tensor:
        return self.on(path).times(path, steps)

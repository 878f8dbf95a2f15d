"""A user's grid, outside gen: times that fall as a power."""

from dataclasses import dataclass

import torch

from gen.diffusion.contracts import Grid


@dataclass(frozen=True)
class MyGrid(Grid):
    power: float = 1.5

    def times(self, path, steps):
        return path.t1 * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** self.power

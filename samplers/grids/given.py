"""Times written down."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.diffusion.path import NoisePath

__all__ = ["Given", "checked"]


@dataclass(frozen=True)
class Given:
    """The times themselves, N + 1 falling numbers from at most t1 to 0: for N steps and no other number of them."""

    values: tuple[float, ...]

    def times(self, path: NoisePath, steps: int) -> Tensor:
        return checked(self.values, path, steps, "Given")


def checked(values: tuple[float, ...], path: NoisePath, steps: int, whose: str) -> Tensor:
    """The times as a grid; UserError if they are none of this path or not for so many steps."""
    times = torch.tensor(values, dtype=torch.float64)
    if len(values) < 2 or not bool((times.diff() < 0).all()) or values[-1] != 0 or not values[0] <= path.t1:
        raise UserError(f"{whose}: times = {list(values)}; they must fall from at most {path.t1:g} to 0")
    if len(values) != steps + 1:
        raise UserError(f"{whose}: {len(values)} times are a grid of {len(values) - 1} steps, not of {steps}")
    return times

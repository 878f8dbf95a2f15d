"""Given times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.path import NoisePath

__all__ = ["Given", "checked"]


@dataclass(frozen=True)
class Given:
    """The times themselves, for len(values) - 1 steps and no other number of them.

    Attributes:
        values: falling from at most t1 to 0, or to where a published loop ends.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        check_fields(self)

    def times(self, path: NoisePath, steps: int) -> Tensor:
        return checked(self.values, path, steps, "Given")


def checked(values: tuple[float, ...], path: NoisePath, steps: int, owner: str) -> Tensor:
    """Return given times as a grid.

    Args:
        values: N + 1 falling numbers in [0, path.t1].
        path: that they belong to.
        steps: N.
        owner: named in the message.

    Raises:
        UserError: if they do not fall within [0, t1], or are not of `steps` steps.
    """
    times = torch.tensor(values, dtype=torch.float64)
    if len(values) < 2 or not bool((times.diff() < 0).all()) or not 0 <= values[-1] < values[0] <= path.t1:
        raise UserError(f"{owner}: times = {list(values)}; they must fall from at most {path.t1:g} to at least 0")
    if len(values) != steps + 1:
        raise UserError(f"{owner}: {len(values)} times are a grid of {len(values) - 1} steps, not of {steps}")
    return times

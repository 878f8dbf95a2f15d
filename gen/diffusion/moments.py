"""Mean and covariance of samples that are an affine function of their noise, without drawing any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.diffusion.noise import Noise

__all__ = ["UnitNoise", "affine_moments"]


@dataclass(frozen=True)
class UnitNoise(Noise):
    """Noise of which each row has one number 1 in one of its draws, and the first row none.

    Attributes:
        seeds: one for each row, of which nothing depends.
        names: of the draws that a loop makes.
        size: numbers of a draw.
    """

    names: tuple[int | str, ...] = ()
    size: int = 1

    def normal(self, name: int | str, shape: Sequence[int]) -> Tensor:
        first = 1 + self.names.index(name) * self.size
        out = torch.zeros(len(self.seeds), self.size, dtype=torch.float64)
        out[first : first + self.size] = torch.eye(self.size, dtype=torch.float64)
        return out.reshape(-1, *shape)


def affine_moments(
    sample: Callable[[int, Noise], Tensor], size: int, names: Sequence[int | str]
) -> tuple[Tensor, Tensor]:
    """Return the exact mean [D] and covariance [D, D] of samples x = b + F z, z all unit noise of a loop.

    One batch has a row for each number of each draw: the difference from the row without noise is its column of F. So
    the loop itself, solver, guide and all, is what is examined, and no random number is drawn.

    Args:
        sample: (rows, noise) -> samples [rows, ...], affine in the noise.
        size: numbers in a draw.
        names: of all draws that the loop makes, such as "start", 0, 1, ...
    """
    rows = 1 + len(names) * size
    out = sample(rows, UnitNoise(tuple(range(rows)), tuple(names), size)).flatten(1).double()
    columns = out[1:] - out[0]
    return out[0], columns.mT @ columns

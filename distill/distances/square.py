"""The mean square."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Square"]


@dataclass(frozen=True)
class Square:
    """The mean square of the difference, over the elements of each sample."""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return ((output - target) ** 2).flatten(1).mean(1)

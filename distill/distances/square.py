"""The mean square."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Square"]


@dataclass(frozen=True)
class Square:
    """The mean square of the difference, over the elements of each sample."""

    def __call__(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """x [B, ...] twice -> [B]."""
        return ((ours - theirs) ** 2).flatten(1).mean(1)

"""Subsets of rows, and rows of length 1."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["subset", "unit"]


def subset(n: int, size: int, seed: int) -> Tensor:
    """Return indices of a random subset in rising order, int64 [min(n, size)], of the generator of this seed alone.

    Args:
        n: of the whole set.
        size: of the subset, at most; all indices if there are no more.
        seed: of the choice.
    """
    if size >= n:
        return torch.arange(n)
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:size].sort().values


def unit(x: Tensor) -> Tensor:
    """Return rows of length 1 in float64.

    Args:
        x: [B, D].
    """
    return torch.nn.functional.normalize(x.double(), dim=1)

"""Subsets of rows, and rows of length 1."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.config.errors import UserError

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

    Raises:
        UserError: for rows of length 0, which have no direction.
    """
    rows = x.double()
    lengths = rows.norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise UserError(f"{int((lengths == 0).sum())} of {len(x)} rows are 0: they have no direction to compare")
    return rows / lengths

"""Distances between features, for policies that compare them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["relative_l1"]


def relative_l1(a: Tensor, b: Tensor, per_batch: bool = False) -> list[float]:
    """Return mean |a - b| / mean |b| of each row: of one row alone, so that none depends on its batch.

    Args:
        a, b: features [B, ...].
        per_batch: return one number, of all rows together.
    """
    a, b = (a[None], b[None]) if per_batch else (a, b)
    off = (a - b).abs().flatten(1).mean(1, dtype=torch.float64)
    size = b.abs().flatten(1).mean(1, dtype=torch.float64)
    return torch.where(off == 0, off, off / size).tolist()

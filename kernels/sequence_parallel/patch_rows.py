"""Rows of a picture shared out over processes: which ones a convolution needs of neighbours, and norms of the whole.

(DistriFusion, Li et al. 2024, arXiv 2402.19481, with the biased variance that GroupNorm has; its code divides the sum
of squares by one less than the number of a part's values, and so differs from the network where nothing is stale.)
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["convolution_halo", "corrected_moments", "group_moments", "transposed_halo", "whole_moments"]


def convolution_halo(kernel: int, stride: int, padding: tuple[int, int], dilation: int = 1) -> tuple[int, int] | None:
    """Return the rows that a part needs before and after its own, so that it computes 1 / stride as many.

    Args:
        kernel, stride, dilation: of a convolution, along the rows.
        padding: rows of zeros above and below the picture.

    Returns:
        None where a picture of H rows, a multiple of the stride, does not become one of H / stride.
    """
    reach = dilation * (kernel - 1)
    if not 0 <= reach - sum(padding) < stride:
        return None
    return padding[0], max(0, reach - stride - padding[0] + 1)


def transposed_halo(
    kernel: int, stride: int, padding: int, output_padding: int = 0, dilation: int = 1
) -> tuple[int, int] | None:
    """Return the rows that a part needs before and after its own, so that it computes `stride` times as many.

    Args:
        kernel, stride, padding, output_padding, dilation: of a transposed convolution, along the rows.

    Returns:
        None where a picture of H rows does not become one of H stride.
    """
    reach = dilation * (kernel - 1)
    if reach + 1 + output_padding - stride - 2 * padding:
        return None
    return max(0, (reach - padding) // stride), (padding - 1) // stride + 1


def group_moments(h: Tensor, groups: int) -> Tensor:
    """Return mean and biased variance of every group of channels of h [B, C, ...], [2, B, G], float32 at least."""
    values = h.to(torch.promote_types(h.dtype, torch.float32)).reshape(len(h), groups, -1)
    variance, mean = torch.var_mean(values, 2, correction=0)
    return torch.stack([mean, variance])


def whole_moments(parts: Tensor) -> Tensor:
    """Return the moments of the whole, [2, B, G], from those of its equal parts, [P, 2, B, G]."""
    mean = parts[:, 0].mean(0)
    return torch.stack([mean, (parts[:, 1] + (parts[:, 0] - mean).square()).mean(0)])


def corrected_moments(stale: Tensor, part: int, fresh: Tensor) -> Tensor:
    """Return the moments that a part takes for the whole's, [2, B, G].

    The whole's first and second moment of the step before, each plus what it has changed by in the part; the part's own
    variance where that of the sum is negative. Written so that what has not changed is returned to the bit.

    Args:
        stale: moments of all parts at the step before, [P, 2, B, G].
        part: its number.
        fresh: its own, [2, B, G].
    """
    (mean, variance), (before, varied) = whole_moments(stale), stale[part]
    rise = fresh[0] - before
    corrected = variance + (fresh[1] - varied) + 2 * rise * (before - mean)
    return torch.stack([mean + rise, torch.where(corrected < 0, fresh[1], corrected)])

"""Sums of kernels over all pairs of rows, a block at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gen.eval.metrics.lib.neighbours import EXACT

__all__ = ["Kernel", "kernel_sums", "own_kernel_sums", "product_rows"]

SIDE = 2048  # rows of a block of the kernel matrix

Prepare = Callable[[Tensor], Tensor]
Kernel = Callable[[Tensor], Tensor]


def product_rows(x: Tensor) -> Tensor:
    """Return rows in the precision of their products: float64 up to 256 dimensions, else float32.

    Args:
        x: [B, D].
    """
    return x.double() if x.shape[1] <= EXACT or x.dtype == torch.float64 else x.float()


def kernel_sums(x: Tensor, y: Tensor, kernel: Kernel, prepare: Prepare = product_rows) -> Tensor:
    """Return sum_j k(x_i . y_j), float64 [N].

    Args:
        x: rows [N, D].
        y: rows [M, D].
        kernel: of inner products, element by element.
        prepare: of a block of rows, before the products.
    """
    sums = torch.empty(len(x), dtype=torch.float64)
    for part, of_part in zip(x.split(SIDE), sums.split(SIDE), strict=True):
        rows, of_blocks = prepare(part), torch.empty(-(-len(y) // SIDE), len(part), dtype=torch.float64)
        for j, other in enumerate(y.split(SIDE)):
            of_blocks[j] = kernel(rows @ prepare(other).T).sum(1, dtype=torch.float64)
        torch.sum(of_blocks, 0, out=of_part)
    return sums


def own_kernel_sums(x: Tensor, kernel: Kernel, prepare: Prepare = product_rows) -> Tensor:
    """Return sum_j k(x_i . x_j) with j = i too, float64 [N]; each pair is computed once.

    Args:
        x: rows [N, D].
        kernel: of inner products, element by element.
        prepare: of a block of rows, before the products.
    """
    whole = torch.zeros(len(x), dtype=torch.float64)
    sums = whole.split(SIDE)
    for i, part in enumerate(x.split(SIDE)):
        rows = prepare(part)
        for j, other in enumerate(x.split(SIDE)[i:], i):
            values = kernel(rows @ prepare(other).T)
            sums[i].add_(values.sum(1, dtype=torch.float64))
            if j > i:
                sums[j].add_(values.sum(0, dtype=torch.float64))
    return whole

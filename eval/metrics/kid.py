"""The kernel distance (KID)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate, check_rows

__all__ = ["KID"]


@dataclass(frozen=True)
class KID:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^degree (Binkowski et al. 2018): the full U-statistic.

    All pairs are used, so nothing is drawn at random and the variance is the least possible; a mean over subsets, the
    usual way, has 2.6 times as much. The standard error is the jackknife's over the samples. Can be negative: its
    mean is zero when both sets come from one distribution.

    Attributes:
        degree: of the polynomial kernel; 3 as published.
        block: rows of the kernel matrix held at once.
    """

    columns: ClassVar = (
        Column(
            "kid",
            "KID",
            note="unbiased squared kernel distance to the real images (cubic kernel), which may be negative",
            priority=90,
        ),
    )
    needs: ClassVar = "features"

    degree: int = 3
    block: int = 1024

    def __post_init__(self) -> None:
        check_fields(self, degree="[1, inf)", block="[1, inf)")

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from rows [N, D] and reference rows [M, D], at least 3 of each."""
        check_rows("kid", samples, reference, least=3)
        x, y = samples.double(), reference.double()
        n, m = len(x), len(y)
        within = self._sums(x, x, skip_self=True) / (n - 1)  # [N], mean kernel with the other samples
        across = self._sums(x, y) / m  # [N], mean kernel with the reference
        real = float(self._sums(y, y, skip_self=True).mean()) / (m - 1)
        value = float(within.mean()) + real - 2 * float(across.mean())
        # the same statistic without sample i, for every i
        without = (n * within.mean() - 2 * within) / (n - 2) - 2 * (n * across.mean() - across) / (n - 1)
        se = ((n - 1) / n * ((without - without.mean()) ** 2).sum()).sqrt()
        return Estimate(value, float(se), n)

    def _sums(self, x: Tensor, y: Tensor, skip_self: bool = False) -> Tensor:
        """Return sum_j k(x_i, y_j), [N]; without j = i if y is x itself."""
        sums = torch.cat([self._kernel(part @ y.T, x.shape[1]).sum(1) for part in torch.split(x, self.block)])
        return sums - self._kernel((x * x).sum(1), x.shape[1]) if skip_self else sums

    def _kernel(self, products: Tensor, dim: int) -> Tensor:
        return (products / dim + 1) ** self.degree

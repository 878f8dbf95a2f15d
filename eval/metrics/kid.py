"""The kernel distance (KID)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate, check_rows
from gen.eval.metrics.lib.kernels import Kernel, kernel_sums, own_kernel_sums, product_rows

__all__ = ["KID"]


@dataclass(frozen=True)
class KID:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^degree (Binkowski et al. 2018): the full U-statistic.

    All pairs are used, so nothing is drawn at random and the variance is the least possible; a mean over subsets, the
    usual way (kid_subsets), has 2.6 times as much. The standard error is the jackknife's over the samples. Can be
    negative: its mean is zero when both sets come from one distribution.

    Attributes:
        degree: of the polynomial kernel; 3 as published.
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

    def __post_init__(self) -> None:
        check_fields(self, degree="[1, inf)")

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from rows [N, D] and reference rows [M, D], at least 3 of each."""
        check_rows("kid", samples, reference, least=3)
        n, m = len(samples), len(reference)
        within = self._others(samples) / (n - 1)  # [N], mean kernel with the other samples
        across = kernel_sums(samples, reference, self._kernel(samples)) / m  # [N], mean kernel with the reference
        real = float(self._others(reference).mean()) / (m - 1)
        value = float(within.mean()) + real - 2 * float(across.mean())
        # the same statistic without sample i, for every i
        without = (n * within.mean() - 2 * within) / (n - 2) - 2 * (n * across.mean() - across) / (n - 1)
        se = ((n - 1) / n * ((without - without.mean()) ** 2).sum()).sqrt()
        return Estimate(value, float(se), n)

    def _others(self, x: Tensor) -> Tensor:
        """Return sum_j k(x_i, x_j) over j other than i, [N]."""
        kernel, squares = self._kernel(x), [(product_rows(part) ** 2).sum(1) for part in x.split(4096)]
        return own_kernel_sums(x, kernel) - kernel(torch.cat(squares)).double()

    def _kernel(self, x: Tensor) -> Kernel:
        return lambda products: products.div_(x.shape[1]).add_(1) ** self.degree

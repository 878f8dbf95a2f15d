"""The kernel distance over subsets, as the field's tools report it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.eval.metrics import Column, Estimate, check_rows
from gen.eval.metrics.lib.kernels import product_rows

__all__ = ["KIDSubsets"]


@dataclass(frozen=True)
class KIDSubsets:
    """Mean and standard deviation of the unbiased cubic kernel distance over random subsets.

    torch-fidelity's draws: without replacement, of the samples and then of the reference, for each subset, by numpy's
    RandomState(seed). The deviation over subsets is what papers print behind the value; it is no error of the mean,
    which the subsets share rows for. KID (all pairs) has a smaller variance and a standard error.

    Attributes:
        subsets: number of them; 100 as published.
        size: rows of a subset; 1000 as published.
        seed: of the draws.
    """

    columns: ClassVar = (
        Column("kid_subsets", "KID (subsets)", note="mean of the kernel distance over random subsets", priority=28),
        Column(
            "kid_subsets_sd",
            "KID sd",
            higher_is_better=None,
            note="standard deviation of the kernel distance over random subsets, no error of the mean",
            priority=27,
        ),
    )
    needs: ClassVar = "features"
    default: ClassVar = False

    subsets: int = 100
    size: int = 1000
    seed: int = 2020

    def __post_init__(self) -> None:
        check_fields(self, subsets="[1, inf)", size="[3, inf)", seed="[0, inf)")

    def __call__(self, samples: Tensor, reference: Tensor) -> tuple[Estimate, Estimate]:
        """Compute it from rows [N, D] and reference rows [M, D], at least `size` of each."""
        check_rows("kid_subsets", samples, reference)
        for what, rows in (("samples", samples), ("reference", reference)):
            if len(rows) < self.size:
                raise UserError(f"kid_subsets: {len(rows)} {what}; it needs at least size = {self.size}")
        dtype = torch.promote_types(*(product_rows(rows[:0]).dtype for rows in (samples, reference)))
        random, values, m = np.random.RandomState(self.seed), list[float](), self.size
        work = torch.empty(m, m, dtype=dtype)
        for _ in range(self.subsets):
            chosen = [random.choice(len(rows), m, replace=False) for rows in (samples, reference)]
            x, y = (
                rows.index_select(0, torch.from_numpy(indices)).to(dtype)
                for rows, indices in zip((samples, reference), chosen, strict=True)
            )
            within = kernel_sum(x, x, work) + kernel_sum(y, y, work)
            values.append(within / (m * (m - 1)) - 2 * kernel_sum(x, y, work) / m**2)
        drawn = torch.tensor(values, dtype=torch.float64)
        spread = float(drawn.std(correction=0))
        return Estimate(float(drawn.mean()), None, len(samples)), Estimate(spread, None, len(samples))


def kernel_sum(x: Tensor, y: Tensor, work: Tensor) -> float:
    """Return the sum of (x_i . y_j / D + 1)^3 over all pairs in float64, without i = j where y is x.

    Args:
        x, y: rows [N, D].
        work: [N, N] of their type, overwritten.
    """
    np.matmul(x.numpy(), y.numpy().T, out=work.numpy())  # numpy sees that a set is taken twice, and does half the work
    kernel = work.div_(x.shape[1]).add_(1).pow_(3)
    own = float(kernel.diagonal().sum(dtype=torch.float64)) if y is x else 0.0
    return float(kernel.sum(1, dtype=torch.float64).sum()) - own

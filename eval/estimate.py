"""A measured number with its uncertainty."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gen.config.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Estimate", "Statistic", "check_rows"]


class Estimate(NamedTuple):  # torchmetrics walks through what compute returns, and refuses frozen dataclasses
    """A value, its standard error, and the number of samples behind it.

    The error is that of drawing the samples again, the model and the reference being what they are.
    """

    value: float
    se: float
    n: int

    def differs(self, other: Estimate) -> bool:
        """Whether two values are at least two combined standard errors apart: otherwise call them a tie."""
        return abs(self.value - other.value) >= 2 * math.hypot(self.se, other.se)


class Statistic(Protocol):
    """What a file of metrics/ holds: rows of the samples [N, ...] against a reference's rows -> Estimate."""

    def __call__(self, rows: Tensor, reference: Tensor) -> Estimate: ...


def check_rows(name: str, rows: Tensor, reference: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Both as float64 [N, D] and [M, D]. UserError if widths differ, a set is too small, or values are not finite."""
    if rows.ndim != 2 or reference.ndim != 2 or rows.shape[1] != reference.shape[1]:
        raise UserError(
            f"{name}: features {list(rows.shape)} against {list(reference.shape)}; allowed: [N, D] and [M, D]"
        )
    for what, x in (("samples", rows), ("reference", reference)):
        if len(x) < least:
            raise UserError(f"{name}: {len(x)} {what}; it needs at least {least}")
        bad = int((~x.isfinite()).any(1).sum())
        if bad:
            raise UserError(f"{name}: {bad} of {len(x)} {what} have features that are not finite")
    return rows.double(), reference.double()

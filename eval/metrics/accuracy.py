"""Label accuracy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.config.errors import UserError
from gen.eval.estimate import Estimate

__all__ = ["Accuracy"]


@dataclass(frozen=True)
class Accuracy:
    """The share of samples that a classifier gives the label they were asked to have.

    The standard error is Agresti & Coull's (1998), from two successes and two failures more, so that 100 % has one too.
    """

    def __call__(self, rows: Tensor, reference: Tensor) -> Estimate:
        """Class scores [N, K] against the labels asked for, int64 [N]."""
        if rows.ndim != 2 or reference.shape != rows.shape[:1] or len(rows) == 0:
            raise UserError(f"accuracy: scores {list(rows.shape)} against labels {list(reference.shape)}")
        if int(reference.min()) < 0 or int(reference.max()) >= rows.shape[1]:
            raise UserError(f"accuracy: label {int(reference.max())}; the classifier knows 0 to {rows.shape[1] - 1}")
        n, right = len(rows), int((rows.argmax(1) == reference).sum())
        p = (right + 2) / (n + 4)
        return Estimate(right / n, (p * (1 - p) / (n + 4)) ** 0.5, n)

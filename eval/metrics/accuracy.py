"""Label accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.config.errors import UserError
from gen.eval.metrics import Column, Estimate
from gen.eval.metrics.lib.shares import share

__all__ = ["Accuracy"]


@dataclass(frozen=True)
class Accuracy:
    """The share of samples that a classifier gives the label they were asked to have.

    The standard error is Agresti & Coull's (1998), from two successes and two failures more, so that 100 % has one too.
    """

    columns: ClassVar = (
        Column(
            "accuracy",
            "Accuracy",
            higher_is_better=True,
            perfect=1.0,
            percent=True,
            note="share of samples that a classifier gives the label they were asked to have",
            priority=60,
        ),
    )
    needs: ClassVar = "logits"

    def __call__(self, samples: Tensor, reference: Tensor) -> Estimate:
        """Compute it from class scores [N, K] and the labels asked for, int64 [N]."""
        if samples.ndim != 2 or reference.shape != samples.shape[:1] or len(samples) == 0:
            raise UserError(f"accuracy: scores {list(samples.shape)} against labels {list(reference.shape)}")
        if int(reference.min()) < 0 or int(reference.max()) >= samples.shape[1]:
            raise UserError(f"accuracy: label {int(reference.max())}; the classifier knows 0 to {samples.shape[1] - 1}")
        return share(int((samples.argmax(1) == reference).sum()), len(samples))

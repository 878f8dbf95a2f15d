"""Our metrics as a torchmetrics.Metric, for loops and libraries that expect one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric as TorchMetric
from torchmetrics.utilities.data import dim_zero_cat

from gen.config.errors import UserError
from gen.eval.metrics import NEEDS, Metric

__all__ = ["AsTorchMetric"]


class AsTorchMetric(TorchMetric):
    """A metric with update and compute, whose rows are kept and joined over processes.

    A metric of two sets takes update(rows, real=True or False); one of samples and what belongs to each of them, such
    as labels, takes update(rows, labels). `compute` returns the value of each column as one float64 tensor; the
    standard errors are in `estimates`.

    Args:
        metric: of gen.eval.metrics.
        extract: makes rows of what the first argument of `update` is, such as an extractor of images; None for rows.
        **kwargs: of torchmetrics.Metric.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self, metric: Metric, extract: Callable[[Tensor], Tensor] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.metric, self.extract = metric, extract
        arguments = NEEDS[metric.needs]
        self.two_sets = len(arguments) == 2 and arguments[1].startswith(("reference", "train"))
        if len(arguments) > 2 or any("?" in name for name in arguments):
            raise UserError(f"{metric.columns[0].key} needs {metric.needs}: too many sets for update")
        self.names = [f"rows{i}" for i in range(len(arguments))]
        for name in self.names:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, rows: Tensor, *others: Tensor, real: bool = False) -> None:
        """Add rows, or what `extract` makes rows of.

        Args:
            rows: of samples, or, if `real`, of the reference, [B, ...].
            others: what else belongs to each sample, [B, ...].
            real: of the reference; for metrics of two sets.
        """
        if len(others) != (0 if self.two_sets else len(self.names) - 1) or (real and not self.two_sets):
            raise UserError(f"{self.metric.columns[0].key} needs {self.metric.needs}: update takes other arguments")
        first = rows if self.extract is None else self.extract(rows)
        for name, x in zip(
            [self.names[-1] if real else self.names[0], *self.names[1:]], (first, *others), strict=False
        ):
            getattr(self, name).append(x.cpu())

    def estimates(self) -> tuple[Any, ...]:
        """Return the estimate of each column."""
        kept = [getattr(self, name) for name in self.names]
        if any(not len(parts) for parts in kept):
            raise UserError(f"{self.metric.columns[0].key}: call update for each set first")
        result = self.metric(*(dim_zero_cat(parts) for parts in kept))
        return tuple(result) if isinstance(result, (tuple, list)) else (result,)

    def compute(self) -> Tensor:
        """Return the value of each column, float64, 0-d for a single one."""
        values = torch.tensor([estimate.value for estimate in self.estimates()], dtype=torch.float64)
        return values[0] if len(values) == 1 else values

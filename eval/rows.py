"""Rows of tensors keyed by the sample's index: the state that all metrics are computed from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gen.config.errors import MissingDependency, UserError

try:
    from torchmetrics import Metric as TorchMetric
    from torchmetrics.utilities.data import dim_zero_cat
except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises RuntimeError
    reason = str(error).splitlines()[0]
    raise MissingDependency(f"torchmetrics cannot be imported ({reason}); see: gen doctor") from error

__all__ = ["IndexedRows"]


class IndexedRows(TorchMetric):
    """Rows of every sample under several names, as a torchmetrics.Metric.

    The state is the rows and the sample's index in the whole set; they are put in order before anything is computed.
    So what is computed from them has the same bits for any batch size, order, number of processes, or merging of
    halves, which no running sum has.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    index: list[Tensor]

    def __init__(self, names: tuple[str, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = names
        for name in ("index", *names):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, **rows: Tensor) -> None:
        """Add samples: their indices in the whole set, int64 [B], and their rows [B, ...] under every name."""
        if index.dtype != torch.int64 or any(x.shape[:1] != index.shape for x in rows.values()):
            lengths = ", ".join(f"{len(x)} {name}" for name, x in rows.items())
            raise UserError(f"index {list(index.shape)} {index.dtype} for {lengths}; it needs int64 [B]")
        for name in self.names:
            bad = ~torch.isfinite(rows[name]).flatten(1).all(1) if rows[name].ndim > 1 else index < 0
            if bool(bad.any()):
                raise UserError(f"the {name} of sample {int(index[bad][0])} are not finite")
        for name, x in ({"index": index} | rows).items():
            getattr(self, name).append(x.cpu())

    def rows(self, name: str) -> Tensor | None:
        """Return all rows of a name, [N, ...], by index, None for others; UserError if one is missing or came twice."""
        if name not in self.names:
            return None
        parts = getattr(self, name)
        if not len(parts):
            raise UserError("no samples: call update first")
        index, order = dim_zero_cat(self.index).sort()
        wrong = (index != torch.arange(len(index), device=index.device)).nonzero()
        if len(wrong):
            i, found = int(wrong[0]), int(index[wrong[0]])
            raise UserError(f"sample {found} came twice" if found < i else f"sample {i} is missing")
        widths = {x.shape[1:] for x in parts} if isinstance(parts, list) else set()
        if len(widths) > 1:
            raise UserError(f"{name} of different shapes: {', '.join(sorted(str(list(w)) for w in widths))}")
        return dim_zero_cat(parts)[order]

    def compute(self) -> dict[str, Tensor]:
        """Return the rows of every name."""
        found = {name: self.rows(name) for name in self.names}
        return {name: rows for name, rows in found.items() if rows is not None}

"""Features keyed by the sample's index: the state that all metrics are computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import MissingDependency, UserError
from gen.eval.estimate import Estimate

try:
    from torchmetrics import Metric
    from torchmetrics.utilities.data import dim_zero_cat
except (ImportError, RuntimeError) as error:  # a torchvision of another torch raises RuntimeError
    reason = str(error).splitlines()[0]
    raise MissingDependency(f"torchmetrics cannot be imported ({reason}); see: gen doctor") from error

__all__ = ["Meter"]


class Meter(Metric):
    """An extractor times any number of statistics, as a torchmetrics.Metric.

    The state is every sample's features and its index in the whole set; they are put in order before anything is
    computed. So the result has the same bits for any batch size, order, number of processes, or merging of halves,
    which no running sum has.

    extract: uint8 images [B, C, H, W] -> features [B, D], each row a function of its image only.
    statistics: name -> (features of all samples, in order [N, D] -> Estimate), the reference already bound.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    index: list[Tensor]
    features: list[Tensor]

    def __init__(
        self,
        extract: Callable[[Tensor], Tensor],
        statistics: Mapping[str, Callable[[Tensor], Estimate]],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.extract = extract
        self.statistics = dict(statistics)
        self.add_state("index", default=[], dist_reduce_fx="cat")
        self.add_state("features", default=[], dist_reduce_fx="cat")

    def update(self, index: Tensor, images: Tensor) -> None:
        """Adds samples: their places in the whole set, int64 [B], and the images, uint8 [B, C, H, W]."""
        if index.shape != images.shape[:1] or index.dtype != torch.int64:
            raise UserError(f"index {list(index.shape)} {index.dtype} for {len(images)} images; it needs int64 [B]")
        features = self.extract(images)
        bad = ~torch.isfinite(features).flatten(1).all(1)
        if bool(bad.any()):
            raise UserError(f"the features of sample {int(index[bad][0])} are not finite")
        self.index.append(index.cpu())
        self.features.append(features)

    def rows(self) -> Tensor:
        """All features in the order of the indices, [N, D]. UserError if a sample came twice or is missing."""
        if not len(self.index):
            raise UserError("no samples: call update first")
        index, order = dim_zero_cat(self.index).sort()
        wrong = (index != torch.arange(len(index), device=index.device)).nonzero()
        if len(wrong):
            i, found = int(wrong[0]), int(index[wrong[0]])
            raise UserError(f"sample {found} came twice" if found < i else f"sample {i} is missing")
        widths = {f.shape[1:] for f in self.features} if isinstance(self.features, list) else set()
        if len(widths) > 1:
            raise UserError(f"features of different shapes: {', '.join(sorted(str(list(w)) for w in widths))}")
        return dim_zero_cat(self.features)[order]

    def compute(self) -> dict[str, Estimate]:
        """Every statistic of all samples."""
        rows = self.rows()
        return {name: statistic(rows) for name, statistic in self.statistics.items()}

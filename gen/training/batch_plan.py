"""The batch size as a plan: a pure function of the update count, as a schedule of the learning rate is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from gen.training.stages import Stages

__all__ = ["BatchPlan"]

POWERS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


@dataclass(frozen=True)
class BatchPlan(Stages):
    """Stages of whole multiples of a run's batch size; of one stage by default.

    Samples come in the order of the data whatever the stages are, each with the noise of its position.

    Attributes:
        ends: see Stages.
        factors: on the batch size.
        rate: how the learning rate follows the batch: "none"; "linear", times the factor (Goyal et al. 2017, arXiv
            1706.02677); "sqrt", times its root, as suits Adam (Malladi et al. 2022, arXiv 2205.10287).
    """

    factors: tuple[int, ...] = (1,)
    rate: Literal["none", "sqrt", "linear"] = "none"

    def factor(self, update: int) -> int:
        """Return the factor on the batch size at update 0, 1, ..."""
        return int(self.at(update))

    def batches_before(self, update: int) -> int:
        """Return the sum of the factors of all updates before one."""
        stages = pairwise((0, *(min(end, update) for end in self.ends), update))
        return sum((stop - start) * factor for (start, stop), factor in zip(stages, self.factors, strict=True))

    def rate_factor(self, update: int) -> float:
        """Return the factor on the learning rate at an update."""
        return float(self.at(update) ** POWERS[self.rate])

"""Block cache: exact, for predictors that never look at later blocks (BD3-LM, Fast-dLLM v2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.samplers.kv_plans.lib.plan import check_block_causal
from gen.text.contracts import KvPlan, KvStep, Predictor

__all__ = ["Block"]


@dataclass(frozen=True)
class Block(KvPlan):
    """The block alone: finished blocks do not change any more, and later ones are not seen. Same numbers as no cache.

    The keys and values of a finished block are those of its clean tokens. They are computed together with the first
    step of the next block, so that no evaluation is spent on them alone, as the published samplers do.
    """

    within_blocks: ClassVar[bool] = True

    def check(self, predictor: Predictor) -> None:
        check_block_causal(self, predictor)

    def span(self, step: KvStep) -> tuple[Tensor, Tensor]:
        return torch.minimum(step.clean_until, step.window.block_start), step.window.block_stop

"""Block cache: exact, for predictors that never look at later blocks (BD3-LM, Fast-dLLM v2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.samplers.kv_plans.lib.plan import needs_blocks
from gen.text.contracts import KvStep, Predictor

__all__ = ["Block"]


@dataclass(frozen=True)
class Block:
    """The block alone: finished blocks do not change any more, and later ones are not seen. Same numbers as no cache.

    The keys and values of a finished block are those of its clean tokens. They are computed together with the first
    step of the next block, so that no evaluation is spent on them alone, as the published samplers do.
    """

    to_text_end: ClassVar[bool] = False

    def check(self, predictor: Predictor) -> None:
        """UserError unless attention is block-causal."""
        needs_blocks(self, predictor)

    def span(self, step: KvStep) -> tuple[Tensor, Tensor]:
        return torch.minimum(step.clean_until, step.window.block_start), step.window.block_stop

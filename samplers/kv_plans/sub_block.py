"""Sub-block cache: within a block, only the window is computed anew (Fast-dLLM v2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.samplers.kv_plans.lib.plan import at_least, due, needs_blocks
from gen.text.contracts import KvStep, Predictor

__all__ = ["SubBlock"]


@dataclass(frozen=True)
class SubBlock:
    """The whole block at the first step of each window, then the window alone (Wu et al. 2025, arXiv 2509.26328).

    For windows that are parts of a block (gen.samplers.block_schedules.semi_ar with `sub`); where a window is a whole
    block, it is Block. Finished blocks are exact, as there; keys and values of the rest of the block, the end of a
    prompt in it included, are those of the window's first step. refresh: the whole block is also computed at every
    refresh-th step of a window; 1 is Block.
    """

    refresh: int | None = None
    to_text_end: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least(self, refresh=1)

    def check(self, predictor: Predictor) -> None:
        """UserError unless attention is block-causal."""
        needs_blocks(self, predictor)

    def span(self, step: KvStep) -> tuple[Tensor, Tensor]:
        block = due(step, self.refresh, step.new_window)
        first = torch.where(block, torch.minimum(step.clean_until, step.window.block_start), step.window.start)
        return first, torch.where(block, step.window.block_stop, step.window.stop)

"""Sub-block cache: within a block, only the window is computed anew (Fast-dLLM v2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.samplers.kv_plans.lib.plan import check_block_causal, is_refresh
from gen.text.contracts import KvPlan, KvStep, Predictor

__all__ = ["SubBlock"]


@dataclass(frozen=True)
class SubBlock(KvPlan):
    """The whole block at the first step of each window, then the window alone (Wu et al. 2025, arXiv 2509.26328).

    For windows that are parts of a block (gen.samplers.block_schedules.semi_ar with `sub`); where a window is a whole
    block, it is Block. Finished blocks are exact, as there; keys and values of the rest of the block, the end of a
    prompt in it included, are those of the window's first step.

    Attributes:
        refresh: the whole block is also computed at every refresh-th step of a window; 1 is Block, None is never.
    """

    refresh: int | None = None
    within_blocks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, refresh="[1, inf)")

    def check(self, predictor: Predictor) -> None:
        check_block_causal(self, predictor)

    def span(self, step: KvStep) -> tuple[Tensor, Tensor]:
        window, block = step.window, is_refresh(step, self.refresh, step.new_window)
        first = torch.where(block, torch.minimum(step.clean_until, window.block_start), window.start)
        return first, torch.where(block, window.block_stop, window.stop)

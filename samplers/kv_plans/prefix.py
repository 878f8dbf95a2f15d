"""Prefix cache: keys and values before the block are kept (Fast-dLLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.config.fields import check_fields
from gen.samplers.kv_plans.lib.plan import is_refresh, whole_canvas_where
from gen.text.contracts import KvPlan, KvStep

__all__ = ["Prefix"]


@dataclass(frozen=True)
class Prefix(KvPlan):
    """Everything at the first step of a block, then the block and all after it (Wu et al. 2025, arXiv 2505.22618).

    The keys and values before the block are those of its first step: stale where deeper layers have since seen new
    tokens, exact in a network of one layer.

    Attributes:
        refresh: everything is also computed at every refresh-th step of a window; 1 is no cache, None is never.
    """

    refresh: int | None = None
    to_text_end: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self, refresh="[1, inf)")

    def span(self, step: KvStep) -> tuple[Tensor, Tensor]:
        full = is_refresh(step, self.refresh, step.new_block)
        return whole_canvas_where(full, step, step.window.block_start, step.text_end)

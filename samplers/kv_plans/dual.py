"""Dual cache: keys and values before the block and after it are kept (Fast-dLLM)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gen.config.fields import check_fields
from gen.samplers.kv_plans.lib.plan import is_refresh, whole_canvas_where
from gen.text.contracts import KvPlan, KvStep

__all__ = ["Dual"]


@dataclass(frozen=True)
class Dual(KvPlan):
    """Everything at the first step of a block, then the block alone (Wu et al. 2025, arXiv 2505.22618).

    All keys and values outside of the block are those of its first step, stale as in Prefix and after the block too.

    Attributes:
        refresh: everything is also computed at every refresh-th step of a window; 1 is no cache, None is never.
    """

    refresh: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, refresh="[1, inf)")

    def span(self, step: KvStep) -> tuple[Tensor, Tensor]:
        full = is_refresh(step, self.refresh, step.new_block)
        return whole_canvas_where(full, step, step.window.block_start, step.window.block_stop)

"""Prefix cache: what lies before the block is remembered (Fast-dLLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gen.samplers.kv_plans.lib.plan import at_least, due, whole_where
from gen.text.contracts import KvStep, Predictor

__all__ = ["Prefix"]


@dataclass(frozen=True)
class Prefix:
    """Everything at the first step of a block, then the block and all after it (Wu et al. 2025, arXiv 2505.22618).

    The keys and values before the block are those of its first step: stale where deeper layers have since seen new
    tokens, exact in a network of one layer. refresh: everything is also computed at every refresh-th step of a window;
    1 is no cache.
    """

    refresh: int | None = None
    to_text_end: ClassVar[bool] = True

    def __post_init__(self) -> None:
        at_least(self, refresh=1)

    def check(self, predictor: Predictor) -> None:
        """It fits every predictor."""

    def span(self, step: KvStep) -> tuple[Tensor, Tensor]:
        return whole_where(due(step, self.refresh, step.new_block), step, step.window.block_start, step.text_end)

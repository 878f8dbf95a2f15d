"""Vicinity cache: the window and some places on either side of it are computed anew (dInfer)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gen.samplers.kv_plans.lib.plan import at_least, due, whole_where
from gen.text.contracts import KvStep, Predictor

__all__ = ["Vicinity"]


@dataclass(frozen=True)
class Vicinity:
    """Everything at the first step of a block, then the window and `near` places around it (arXiv 2510.08666).

    Places next to the window change most with what is committed in it. warmup: everything is computed in the first so
    many steps of the first block. refresh: and at every refresh-th step of a window; 1 is no cache.
    """

    near: int = 16
    warmup: int = 4
    refresh: int | None = None
    to_text_end: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least(self, near=0, warmup=0, refresh=1)

    def check(self, predictor: Predictor) -> None:
        """It fits every predictor."""

    def span(self, step: KvStep) -> tuple[Tensor, Tensor]:
        full = due(step, self.refresh, step.new_block) | (
            (step.window.block_start <= step.prompt_end) & (step.index < self.warmup)
        )
        first, last = (
            (step.window.start - self.near).clamp(min=0),
            torch.minimum(step.window.stop + self.near, step.text_end),
        )
        return whole_where(full, step, first, last)

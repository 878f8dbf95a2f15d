"""Vicinity cache: the window and its neighbours are computed anew (dInfer)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.samplers.kv_plans.lib.plan import is_refresh, whole_canvas_where
from gen.text.contracts import KvPlan, KvStep

__all__ = ["Vicinity"]


@dataclass(frozen=True)
class Vicinity(KvPlan):
    """Everything at the first step of a block, then the window and positions around it (arXiv 2510.08666).

    Positions next to the window change most with what is committed in it.

    Attributes:
        near: positions on either side of the window.
        warmup: everything is computed in so many first steps of the first block.
        refresh: everything is also computed at every refresh-th step of a window; 1 is no cache, None is never.
    """

    near: int = 16
    warmup: int = 4
    refresh: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, near="[0, inf)", warmup="[0, inf)", refresh="[1, inf)")

    def span(self, step: KvStep) -> tuple[Tensor, Tensor]:
        window = step.window
        warming_up = (window.block_start <= step.prompt_end) & (step.index < self.warmup)
        full = is_refresh(step, self.refresh, step.new_block) | warming_up
        first = (window.start - self.near).clamp(min=0)
        return whole_canvas_where(full, step, first, torch.minimum(window.stop + self.near, step.text_end))

"""Ancestral: the reverse process of masked diffusion on a grid of times (MDLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.spec import part
from gen.text.contracts import CommitDecision, RowState, StepView
from gen.text.mask_path import LogLinear

__all__ = ["Ancestral"]


@dataclass(frozen=True)
class Ancestral:
    """Commits each token by itself with probability 1 - mask(s) / mask(t), in `steps` even steps of t from 1 to 0.

    The last step commits all (Sahoo et al. 2024, section 3.2). Steps that commit nothing evaluate nothing, which is
    right for networks that are not told the time; of L tokens under LogLinear, steps (1 - (1 - 1/steps)^L) evaluations
    are expected. The steps are those of a window: `blocks = whole` is MDLM's sampler.
    """

    steps: int = 128
    path: Any = part("text.mask_path", default=LogLinear())
    may_skip: ClassVar[bool] = True
    order_depends_on_samples: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"Ancestral: steps = {self.steps}; it must be at least 1")

    def chance(self, step: Tensor) -> Tensor:
        """The probability that a masked token is committed at a step, of step's shape, float64."""
        t = ((self.steps - step).clamp(min=1).double()) / self.steps
        s = t - 1 / self.steps
        return torch.where(step >= self.steps - 1, 1.0, 1 - self.path.masked_fraction(s) / self.path.masked_fraction(t))

    def init(self, rows: int, length: int) -> RowState:
        return {}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        return CommitDecision(view.masked & (view.uniform("order") < self.chance(view.step)[:, None])), state

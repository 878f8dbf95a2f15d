"""Factor: the surer the tokens, the more of them at once (Fast-dLLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gen.config.errors import UserError
from gen.samplers.decoding_policies.lib.score import first, score
from gen.text.contracts import CommitDecision, RowState, StepView

__all__ = ["Factor"]


@dataclass(frozen=True)
class Factor:
    """Commits the n likeliest tokens, n the most for which each of the first n, in order, has c_(n) > 1 - f / (n + 1).

    At least one. With f <= 1 and the likeliest tokens taken (temperature 0) those n are what the joint, too, holds for
    likeliest, however they depend on one another (Wu et al. 2025, theorem 1); beyond, nothing is promised. Public code
    breaks out of its loop at the first failure and cannot tell a failure of the last token from none: it commits both
    of (.99, .5) at f = 1, where this commits one.
    """

    factor: float = 1.0
    may_skip: ClassVar[bool] = False
    order_depends_on_samples: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise UserError(f"Factor: factor = {self.factor}; it must be positive")

    def init(self, rows: int, length: int) -> RowState:
        return {}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        sure = score(view, "confidence")
        n = torch.arange(1, sure.shape[-1] + 1, device=sure.device, dtype=sure.dtype)
        passed = sure.sort(-1, descending=True).values > 1 - self.factor / (n + 1)
        count = passed.sum(-1).clamp(min=1)  # the bar rises as c falls: those that pass are the first ones
        return CommitDecision(first(sure, count)), state

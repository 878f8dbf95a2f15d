"""Entropy bound: as many tokens at once as can depend on one another by no more than so many nats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from gen.config.errors import UserError
from gen.samplers.decoding_policies.lib.score import first
from gen.text.contracts import CommitDecision, RowState, StepView

__all__ = ["EntropyBound"]


@dataclass(frozen=True)
class EntropyBound:
    """Commits tokens from the lowest entropy up while those before it sum to at most `bound` nats.

    The sum of entropies less the largest bounds the total correlation, so a step of an exact model errs by at most
    `bound` nats: KL(model || decoded) <= bound x steps at temperature 1. bound 0 still commits whatever is certain
    (Ben-Hamu et al. 2025, arXiv 2505.24857).
    """

    bound: float = 0.1
    may_skip: ClassVar[bool] = False
    order_depends_on_samples: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.bound >= 0:
            raise UserError(f"EntropyBound: bound = {self.bound}; it must be at least 0")

    def init(self, rows: int, length: int) -> RowState:
        return {}

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        entropy = view.entropy.masked_fill(~view.masked, torch.inf)
        ordered = entropy.sort(-1).values
        before = torch.nn.functional.pad(ordered.cumsum(-1)[..., :-1], (1, 0))
        count = (before <= self.bound).sum(-1)
        return CommitDecision(first(-entropy, count)), state

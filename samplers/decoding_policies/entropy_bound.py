"""Entropy bound: as many tokens at once as can depend on one another by a number of nats at most (EB-Sampler)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gen.config.fields import check_fields
from gen.samplers.decoding_policies.lib.score import top_positions
from gen.text.contracts import CommitDecision, DecodingPolicy, RowState, StepView

__all__ = ["EntropyBound"]


@dataclass(frozen=True)
class EntropyBound(DecodingPolicy):
    """Commits tokens from the lowest entropy up while the entropies before a token sum to at most a bound.

    The sum of entropies less the largest bounds the total correlation, so a step of an exact model errs by at most
    `bound` nats: KL(model || decoded) <= bound x steps at temperature 1 (Ben-Hamu et al. 2025, arXiv 2505.24857).

    Attributes:
        bound: nats; 0 still commits whatever is certain.
    """

    bound: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self, bound="[0, inf)")

    def select(self, view: StepView, state: RowState) -> tuple[CommitDecision, RowState]:
        entropy = view.entropy.masked_fill(~view.masked, torch.inf)
        ordered = entropy.sort(-1).values
        before = torch.nn.functional.pad(ordered.cumsum(-1)[..., :-1], (1, 0))
        count = (before <= self.bound).sum(-1)
        return CommitDecision(top_positions(-entropy, count)), state

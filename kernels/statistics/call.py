"""The complete arguments of token_statistics, which every back end is given, and its result."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["StatisticsCall", "TokenStatistics"]


class StatisticsCall(NamedTuple):
    """Statistics of each row of logits.

    Attributes:
        logits: [..., V].
        mask_token_id: a token whose logit counts as -inf, or None.
    """

    logits: Tensor
    mask_token_id: int | None


class TokenStatistics(NamedTuple):
    """Statistics of rows of logits, [...] each; numbers in float32, or in float64 of float64 logits.

    Attributes:
        best, second: tokens of the two largest logits, the lower index among equals, int64; 0 where the logit is -inf.
        best_logit, second_logit: those logits.
        lse: log sum exp of all logits.
        entropy: of their softmax, in nats.
    """

    best: Tensor
    second: Tensor
    best_logit: Tensor
    second_logit: Tensor
    lse: Tensor
    entropy: Tensor

    @property
    def confidence(self) -> Tensor:
        """The largest probability."""
        return (self.best_logit - self.lse).exp()

    @property
    def margin(self) -> Tensor:
        """The difference of the two largest probabilities."""
        return self.confidence - (self.second_logit - self.lse).exp()

"""What decoding asks of logits: the two likeliest tokens, the sum of all and the entropy, in one pass."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gen.kernels.dispatch import Backend, Op
from gen.kernels.statistics import chunked, reference, triton_launch

__all__ = ["TokenStatistics", "token_statistics"]


class TokenStatistics(NamedTuple):
    """Each [...]: indices int64, numbers float32 (float64 of float64 logits).

    best, second: the tokens of the two largest logits, the lower index among equals. top, next: those logits; where
    one is -inf its index is 0. lse: log sum exp of all logits. entropy: of their softmax, in nats.
    """

    best: Tensor
    second: Tensor
    top: Tensor
    next: Tensor
    lse: Tensor
    entropy: Tensor

    @property
    def confidence(self) -> Tensor:
        """The largest probability."""
        return (self.top - self.lse).exp()

    @property
    def margin(self) -> Tensor:
        """The difference of the two largest probabilities."""
        return self.confidence - (self.next - self.lse).exp()


def _token_statistics(logits: Tensor, mask_token: int | None = None) -> tuple[Tensor, int | None]:
    """logits [..., V] -> TokenStatistics of each row, read once; no softmax over the vocabulary is stored.

    mask_token: a token that is never drawn; its logit counts as -inf. Every row needs a finite logit. The four numbers
    are differentiable. ValueError if fewer than two tokens may be drawn, or mask_token is none of them.
    """
    size = logits.shape[-1]
    if mask_token is not None and not 0 <= mask_token < size:
        raise ValueError(f"token_statistics: mask_token is {mask_token}; it must be in 0 ... {size - 1}")
    if size - (mask_token is not None) < 2:
        raise ValueError(f"token_statistics: of {size} logits fewer than two tokens may be drawn")
    return logits, mask_token


def _floating(logits: Tensor, mask_token: int | None) -> str | None:
    return None if logits.is_floating_point() else f"logits are {logits.dtype}"


def _reference(logits: Tensor, mask_token: int | None) -> TokenStatistics:
    return TokenStatistics(*reference.token_statistics(logits, mask_token))


def _chunked(logits: Tensor, mask_token: int | None) -> TokenStatistics:
    return TokenStatistics(*chunked.run(logits, mask_token))


def _triton(logits: Tensor, mask_token: int | None) -> TokenStatistics:
    return TokenStatistics(*triton_launch.run(logits, mask_token))


token_statistics = Op(
    "token_statistics",
    _token_statistics,
    (
        Backend("triton", triton_launch.refuses, _triton),
        Backend("chunked", chunked.refuses, _chunked),
        Backend("reference", _floating, _reference),
    ),
)

"""The contract of a predictor: a masked-diffusion model as a decoder calls it.

A network of models/text.py is a Predictor as it is; an exact joint distribution (gen/text/worlds.py) is one too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["KvCache", "Predictor", "Span"]


@dataclass(eq=False)
class KvCache:
    """Keys and values of every layer at every position of B canvases of N tokens.

    Slot N is scratch space for padded writes.

    Attributes:
        keys, values: one tensor [B, heads, N + 1, d] for each layer.
        filled: positions that have been computed, bool [B, N + 1].
    """

    keys: list[Tensor]
    values: list[Tensor]
    filled: Tensor

    def take(self, rows: Tensor) -> KvCache:
        """Return the cache of some rows, int64 [R]."""
        return KvCache([k[rows] for k in self.keys], [v[rows] for v in self.values], self.filled[rows])

    def joined(self, other: KvCache) -> KvCache:
        """Return the cache of the rows of both."""
        keys, values = (
            [torch.cat(pair) for pair in zip(one, two, strict=True)]
            for one, two in ((self.keys, other.keys), (self.values, other.values))
        )
        return KvCache(keys, values, torch.cat([self.filled, other.filled]))

    def resized(self, n: int) -> KvCache:
        """Return the same for canvases of n tokens, of which none may hold more."""
        old = self.filled.shape[1] - 1
        more = n - old
        keys, values = ([pad(v, (0, 0, 0, more)) for v in layers] for layers in (self.keys, self.values))
        filled = pad(self.filled, (0, more))
        filled[:, min(old, n) :] = False  # what was scratch space is a position, or the other way round
        return KvCache(keys, values, filled)


@dataclass(frozen=True, eq=False)
class Span:
    """Positions that one forward computes.

    Attributes:
        positions: ascending indices on each canvas, int64 [B, F]; N where a row has fewer.
        first: each row's first position, int64 [B]: position p is column p - first.
        stop: no position from there on is attended to.
    """

    positions: Tensor
    first: Tensor
    stop: int


@runtime_checkable
class Predictor(Protocol):
    """Predicts masked tokens: p(token at position i | the tokens that are not masked)."""

    @property
    def vocab_size(self) -> int:
        """Size of the logits: ids are 0 .. vocab_size - 1, the mask's among them."""
        ...

    @property
    def mask_token_id(self) -> int:
        """Id of the mask token."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a text; may be empty."""
        ...

    @property
    def block_size(self) -> int | None:
        """Attention is block-causal in blocks of so many positions from position 0; None: every position sees all."""
        ...

    @property
    def shift(self) -> int:
        """1 if a position is predicted by the output at the one before (adapted next-token models), else 0."""
        ...

    def init_cache(self, rows: int, length: int) -> KvCache:
        """Return an empty KV cache; called only where a KV plan is used.

        Args:
            rows: canvases.
            length: tokens of a canvas.
        """
        ...

    def __call__(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        kv_cache: KvCache | None = None,
        span: Span | None = None,
    ) -> Tensor:
        """Return the logits [B, W, vocab_size] of the queried positions.

        Args:
            tokens: canvases, int64 [B, N].
            lengths: positions from there on are padding and attended to by none, int64 [B]; None: there is no padding.
            positions: queried positions, int64 [B, W]; None for all N. What lies beyond a length is arbitrary.
            kv_cache: given together with `span` and `positions`: the span's keys and values are written into it, and
                every position attends to all that is filled.
            span: the only positions that are computed then; it holds positions - shift (position 0 is predicted by
                itself). None computes all.
        """
        ...

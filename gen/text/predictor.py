"""What a decoder asks of a masked-diffusion model: logits at some places of a canvas, computed anew or from memory.

A network of models/text.py is a Predictor as it is; an exact joint distribution (gen/text/worlds.py) is one too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Guided", "Memory", "Predictor", "Span", "Suppressed"]


@dataclass(eq=False)
class Memory:
    """Keys and values of every layer at every place of B canvases of N tokens; place N takes what is thrown away.

    keys, values: one tensor [B, heads, N + 1, d] per layer. seen [B, N + 1]: which places have been computed.
    """

    keys: list[Tensor]
    values: list[Tensor]
    seen: Tensor

    def take(self, rows: Tensor) -> Memory:
        """The memory of some rows, int64 [R]."""
        return Memory([k[rows] for k in self.keys], [v[rows] for v in self.values], self.seen[rows])


@dataclass(frozen=True, eq=False)
class Span:
    """What one forward computes: places [B, F], each row's in order and N where a row has fewer.

    first [B]: each row's first place, so that place p is column p - first. upto: no place from there on matters.
    """

    places: Tensor
    first: Tensor
    upto: int


class Predictor(Protocol):
    """A model of p(token at place i | the tokens that are not masked).

    vocab: the size of its logits. mask: the mask token's id. stops: ids that end a text. block: attention is
    block-causal in blocks of so many places from place 0; None: every place sees every other. shift: 1 if a place is
    predicted by what the network puts out at the place before (models adapted from next-token ones), else 0.
    """

    @property
    def vocab(self) -> int: ...
    @property
    def mask(self) -> int: ...
    @property
    def stops(self) -> tuple[int, ...]: ...
    @property
    def block(self) -> int | None: ...
    @property
    def shift(self) -> int: ...

    def start(self, rows: int, length: int) -> Memory:
        """An empty memory for canvases [rows, length]."""
        ...

    def __call__(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        at: Tensor | None = None,
        *,
        memory: Memory | None = None,
        span: Span | None = None,
    ) -> Tensor:
        """Logits [B, W, vocab] of the tokens at places `at` [B, W] (None: all N) of canvases tokens [B, N].

        lengths [B]: places from there on are padding and seen by none. With a memory only span's places are computed:
        their keys and values are written into it and every place sees all that the memory has seen. Then
        at - shift lies within the span (place 0 is predicted by itself). What `at` names beyond a length is arbitrary.
        """
        ...


@dataclass(frozen=True, eq=False)
class Wrapped:
    """A Predictor that answers for another one."""

    inner: Any

    @property
    def vocab(self) -> int:
        return int(self.inner.vocab)

    @property
    def mask(self) -> int:
        return int(self.inner.mask)

    @property
    def stops(self) -> tuple[int, ...]:
        return tuple(self.inner.stops)

    @property
    def block(self) -> int | None:
        return self.inner.block

    @property
    def shift(self) -> int:
        return int(self.inner.shift)

    @property
    def each(self) -> int:
        """Evaluations of the network for each call."""
        return int(getattr(self.inner, "each", 1))

    def start(self, rows: int, length: int) -> Memory:
        return self.inner.start(rows, length)


@dataclass(frozen=True, eq=False)
class Suppressed(Wrapped):
    """Tokens that are never predicted, whatever the temperature: their logits are -inf (LLaDA's logits_eos_inf)."""

    ids: tuple[int, ...] = ()

    def __call__(self, tokens: Tensor, lengths: Tensor | None = None, at: Tensor | None = None, **how: Any) -> Tensor:
        logits: Tensor = self.inner(tokens, lengths, at, **how)
        return logits.index_fill(-1, torch.tensor(self.ids, device=logits.device), -torch.inf)


@dataclass(frozen=True, eq=False)
class Guided(Wrapped):
    """Classifier-free guidance: u + (scale + 1) (c - u), u the logits with the prompt masked (LLaDA; scale 0: none).

    start_of [B]: where each canvas's prompt ends. It holds no memory: two prompts would need two.
    """

    scale: float = 0.0
    prompt: Tensor | None = None

    @property
    def each(self) -> int:
        return 2 * super().each

    def __call__(self, tokens: Tensor, lengths: Tensor | None = None, at: Tensor | None = None, **how: Any) -> Tensor:
        hidden = torch.arange(tokens.shape[1], device=tokens.device) < self.prompt[:, None]  # type: ignore[index]
        both = torch.cat([tokens, tokens.masked_fill(hidden, self.mask)])
        twice = [None if v is None else torch.cat([v, v]) for v in (lengths, at)]
        given, free = self.inner(both, *twice, **how).chunk(2)
        return torch.where(given == free, given, free + (self.scale + 1) * (given - free))  # -inf - -inf is none

"""Predictors without a network: one whose logits are noise of the whole canvas, one whose logits are a given table."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(eq=False)
class Fake:
    """Common to both. calls: how many canvases each call was given; contexts: the canvases themselves."""

    words: int = 12
    eos_token_ids: tuple[int, ...] = ()
    block_size: int | None = None
    shift: int = 0
    dtype: torch.dtype = torch.float64
    calls: list[int] = field(default_factory=list)
    contexts: list[torch.Tensor] = field(default_factory=list)

    @property
    def mask_token_id(self):
        return self.words

    @property
    def vocab_size(self):
        return self.words + 1

    def __call__(self, tokens, lengths=None, positions=None):
        self.calls.append(len(tokens))
        self.contexts.append(tokens.clone())
        if positions is None:
            positions = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
        return self.logits(tokens, lengths, positions).to(self.dtype)


PRIME = 2**31 - 1


@dataclass(eq=False)
class Noisy(Fake):
    """Logits that change with every token of the canvas but its padding; the same to the bit in any batch."""

    scale: float = 9.0

    def logits(self, tokens, lengths, positions):
        n = tokens.shape[1]
        places = torch.arange(n)
        seen = (tokens + 2) * (places * 7919 + 104729) % PRIME
        if lengths is not None:
            seen = seen * (places < lengths[:, None])
        context = seen.sum(1) % PRIME
        x = (context[:, None] * 48271 + positions * 69621 + 12345) % PRIME  # [B, W]
        x = (x[..., None] * 16807 + torch.arange(self.vocab_size) * 630360016) % PRIME
        x = (x * 48271) % PRIME
        return x.double() / PRIME * self.scale


@dataclass(eq=False)
class Table(Fake):
    """The same logits [N, vocab] whatever the canvas holds; places count from the canvas's start."""

    table: torch.Tensor | None = None

    def logits(self, tokens, lengths, positions):
        return self.table[positions.clamp(max=len(self.table) - 1)]


def table_of(tokens, sure, words=12, eos_token_ids=(), **fields):
    """A Table that predicts `tokens`, each with the probability in `sure`, the others alike."""
    sure = torch.tensor(sure, dtype=torch.float64)
    p = ((1 - sure) / (words - 1))[:, None].repeat(1, words + 1)
    p[torch.arange(len(sure)), torch.tensor(tokens)] = sure
    p[:, words] = 0
    return Table(words=words, eos_token_ids=eos_token_ids, table=p.log(), **fields)

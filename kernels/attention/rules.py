"""Who may attend to whom: rules over places, not matrices of N x N.

A rule is a frozen dataclass. `allowed` states it, for index tensors of any broadcastable shapes. `codes` says the same
with three numbers to a place, for kernels to read: q sees k if level[k] <= reach[q], or if own[q] == own[k] >= 0.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

__all__ = [
    "EVERYONE",
    "Bidirectional",
    "BlockCausal",
    "BlockDiffusion",
    "Causal",
    "Codes",
    "Rule",
    "ScaleCausal",
    "decode",
    "encode",
]

Codes = tuple[Tensor, Tensor, Tensor]  # level, reach, own: int32 [N] each
NEVER = 2**31 - 1  # the level of keys that are seen through `own` only


class Rule(Protocol):
    """What a rule offers. One without `codes` runs wherever a mask may be any function of two indices."""

    def unfit(self, n: int) -> str | None:
        """Why the rule is none of n places; None if it is."""
        ...

    def allowed(self, q_index: Tensor, k_index: Tensor) -> Tensor:
        """bool, True where the query's place may see the key's."""
        ...


@dataclass(frozen=True)
class Bidirectional:
    """Everyone sees everyone."""

    def unfit(self, n: int) -> str | None:
        return None

    def allowed(self, q_index: Tensor, k_index: Tensor) -> Tensor:
        return (q_index == q_index) & (k_index == k_index)

    def codes(self, n: int) -> Codes:
        zero = torch.zeros(n, dtype=torch.int32)
        return zero, zero, zero - 1


@dataclass(frozen=True)
class Causal:
    """Each place sees itself and those before it."""

    def unfit(self, n: int) -> str | None:
        return None

    def allowed(self, q_index: Tensor, k_index: Tensor) -> Tensor:
        return k_index <= q_index

    def codes(self, n: int) -> Codes:
        place = torch.arange(n, dtype=torch.int32)
        return place, place, torch.full_like(place, -1)


@dataclass(frozen=True)
class BlockCausal:
    """Each place sees its own block of `block` places and all blocks before it; the last block may be short."""

    block: int = 32

    def __post_init__(self) -> None:
        _positive("BlockCausal.block", self.block)

    def unfit(self, n: int) -> str | None:
        return None

    def allowed(self, q_index: Tensor, k_index: Tensor) -> Tensor:
        return k_index // self.block <= q_index // self.block

    def codes(self, n: int) -> Codes:
        block = torch.arange(n, dtype=torch.int32) // self.block
        return block, block, torch.full_like(block, -1)


@dataclass(frozen=True)
class BlockDiffusion:
    """Training block diffusion in one pass over [x_t, x_0], each of `length` places in blocks of `block`.

    A noisy place sees its own noisy block and the clean blocks before it; a clean place sees the clean blocks up to its
    own; nothing clean sees anything noisy. (BD3-LM, Arriola et al. 2025, arXiv 2503.09573, section 3.)
    """

    length: int = 1024
    block: int = 16

    def __post_init__(self) -> None:
        _positive("BlockDiffusion.length", self.length)
        _positive("BlockDiffusion.block", self.block)

    def unfit(self, n: int) -> str | None:
        return None if n == 2 * self.length else f"{self} is a rule of {2 * self.length} places"

    def allowed(self, q_index: Tensor, k_index: Tensor) -> Tensor:
        q_noisy, k_noisy = q_index < self.length, k_index < self.length
        q_block, k_block = (q_index % self.length) // self.block, (k_index % self.length) // self.block
        within = q_noisy & k_noisy & (q_block == k_block)
        before = q_noisy & ~k_noisy & (k_block < q_block)
        clean = ~q_noisy & ~k_noisy & (k_block <= q_block)
        return within | before | clean

    def codes(self, n: int) -> Codes:
        block = torch.arange(self.length, dtype=torch.int32) // self.block
        level = torch.cat([torch.full_like(block, NEVER), block])
        return level, torch.cat([block - 1, block]), torch.cat([block, torch.full_like(block, -1)])


@dataclass(frozen=True)
class ScaleCausal:
    """Scales of `sizes` places one after the other; each place sees its own scale and the coarser ones before it.

    (Next-scale prediction: VAR, Tian et al. 2024, arXiv 2404.02905, section 3.2.)
    """

    sizes: tuple[int, ...] = (1, 4, 9, 16)

    def __post_init__(self) -> None:
        for size in self.sizes:
            _positive("a size of ScaleCausal", size)

    def unfit(self, n: int) -> str | None:
        return None if n == sum(self.sizes) else f"{self} is a rule of {sum(self.sizes)} places"

    def allowed(self, q_index: Tensor, k_index: Tensor) -> Tensor:
        return self._scale(k_index) <= self._scale(q_index)

    def codes(self, n: int) -> Codes:
        scale = self._scale(torch.arange(n)).int()
        return scale, scale, torch.full_like(scale, -1)

    def _scale(self, index: Tensor) -> Tensor:
        """Which scale a place belongs to: how many scales have ended by then."""
        scale = torch.zeros_like(index)
        for end in list(accumulate(self.sizes))[:-1]:
            scale = scale + (index >= end)
        return scale


EVERYONE = Bidirectional()
KINDS = (Bidirectional, Causal, BlockCausal, BlockDiffusion, ScaleCausal)


def encode(rule: Rule) -> list[int]:
    """One of this file's rules as integers, the only form in which a custom op may be given it."""
    kind = KINDS.index(type(rule))
    fields = [getattr(rule, field.name) for field in dataclasses.fields(rule)]  # type: ignore[arg-type]
    return [kind, *(rule.sizes if isinstance(rule, ScaleCausal) else fields)]


def decode(numbers: list[int]) -> Bidirectional | Causal | BlockCausal | BlockDiffusion | ScaleCausal:
    """The rule that `encode` made the integers of."""
    kind, fields = KINDS[numbers[0]], numbers[1:]
    return ScaleCausal(tuple(fields)) if numbers[0] == KINDS.index(ScaleCausal) else kind(*fields)  # type: ignore[arg-type]


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")

"""Mask rules of attention: which position may attend to which, as functions of positions and not as N x N matrices.

A rule is a frozen dataclass. `allowed` states it for index tensors of any broadcastable shapes. `codes` says the same
with three integers per position, for kernels to read: q attends to k if level[k] <= reach[q], or if segment[q] ==
segment[k] >= 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = [
    "BIDIRECTIONAL",
    "Bidirectional",
    "BlockCausal",
    "BlockDiffusion",
    "Causal",
    "Codes",
    "MaskRule",
    "ScaleCausal",
    "decode",
    "encode",
]

NEVER = 2**31 - 1  # the level of keys that are attended to within their segment only


class Codes(NamedTuple):
    """A rule over N positions as int32 tensors [N]; segment is -1 outside of all segments."""

    level: Tensor
    reach: Tensor
    segment: Tensor


class MaskRule(Hashable, Protocol):
    """Contract of a mask rule; one without `codes` runs wherever a mask may be any function of two indices."""

    def incompatible_reason(self, n: int) -> str | None:
        """Return why the rule cannot cover n positions, or None.

        Args:
            n: number of positions.
        """
        ...

    def allowed(self, q_index: Tensor, k_index: Tensor) -> Tensor:
        """Return bool, True where the query's position may attend to the key's.

        Args:
            q_index: positions of queries, integers of any shape.
            k_index: positions of keys, broadcastable with q_index.
        """
        ...


@dataclass(frozen=True)
class Bidirectional:
    """All positions attend to all."""

    def incompatible_reason(self, n: int) -> str | None:
        return None

    def allowed(self, q_index: Tensor, k_index: Tensor) -> Tensor:
        return (q_index == q_index) & (k_index == k_index)

    def codes(self, n: int) -> Codes:
        zero = torch.zeros(n, dtype=torch.int32)
        return Codes(zero, zero, zero - 1)


@dataclass(frozen=True)
class Causal:
    """Each position attends to itself and to those before it."""

    def incompatible_reason(self, n: int) -> str | None:
        return None

    def allowed(self, q_index: Tensor, k_index: Tensor) -> Tensor:
        return k_index <= q_index

    def codes(self, n: int) -> Codes:
        position = torch.arange(n, dtype=torch.int32)
        return Codes(position, position, torch.full_like(position, -1))


@dataclass(frozen=True)
class BlockCausal:
    """Each position attends to its own block and to all blocks before it; the last block may be short.

    Attributes:
        block: positions per block, at least 1.
    """

    block: int = 32

    def __post_init__(self) -> None:
        _check_positive("BlockCausal.block", self.block)

    def incompatible_reason(self, n: int) -> str | None:
        return None

    def allowed(self, q_index: Tensor, k_index: Tensor) -> Tensor:
        return k_index // self.block <= q_index // self.block

    def codes(self, n: int) -> Codes:
        block = torch.arange(n, dtype=torch.int32) // self.block
        return Codes(block, block, torch.full_like(block, -1))


@dataclass(frozen=True)
class BlockDiffusion:
    """Block diffusion's training mask over [x_t, x_0] in one pass.

    A noisy position attends to its own noisy block and to the clean blocks before it; a clean one to the clean blocks
    up to its own; nothing clean to anything noisy. (BD3-LM, Arriola et al. 2025, arXiv 2503.09573, section 3.)

    Attributes:
        length: positions of x_t, and of x_0, at least 1.
        block: positions per block, at least 1.
    """

    length: int = 1024
    block: int = 16

    def __post_init__(self) -> None:
        _check_positive("BlockDiffusion.length", self.length)
        _check_positive("BlockDiffusion.block", self.block)

    def incompatible_reason(self, n: int) -> str | None:
        return None if n == 2 * self.length else f"{self} is a rule of {2 * self.length} positions"

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
        return Codes(level, torch.cat([block - 1, block]), torch.cat([block, torch.full_like(block, -1)]))


@dataclass(frozen=True)
class ScaleCausal:
    """Scales one after the other; each position attends to its own scale and to the coarser ones before it.

    (Next-scale prediction: VAR, Tian et al. 2024, arXiv 2404.02905, section 3.2.)

    Attributes:
        sizes: positions of each scale, from the coarsest, at least 1 each.
    """

    sizes: tuple[int, ...] = (1, 4, 9, 16)

    def __post_init__(self) -> None:
        for size in self.sizes:
            _check_positive("a size of ScaleCausal", size)

    def incompatible_reason(self, n: int) -> str | None:
        return None if n == sum(self.sizes) else f"{self} is a rule of {sum(self.sizes)} positions"

    def allowed(self, q_index: Tensor, k_index: Tensor) -> Tensor:
        return self._scale(k_index) <= self._scale(q_index)

    def codes(self, n: int) -> Codes:
        scale = self._scale(torch.arange(n)).int()
        return Codes(scale, scale, torch.full_like(scale, -1))

    def _scale(self, index: Tensor) -> Tensor:
        """Return the scale of each position: how many scales end at or before it."""
        scale = torch.zeros_like(index)
        for end in list(accumulate(self.sizes))[:-1]:
            scale = scale + (index >= end)
        return scale


BIDIRECTIONAL = Bidirectional()
KINDS = (Bidirectional, Causal, BlockCausal, BlockDiffusion, ScaleCausal)


def encode(rule: MaskRule) -> list[int]:
    """Return a rule as integers, the only form in which a custom op may be given it.

    Args:
        rule: one of this file's.
    """
    kind = KINDS.index(type(rule))
    fields = [getattr(rule, field.name) for field in dataclasses.fields(rule)]  # type: ignore[arg-type]
    return [kind, *(rule.sizes if isinstance(rule, ScaleCausal) else fields)]


def decode(numbers: list[int]) -> Bidirectional | Causal | BlockCausal | BlockDiffusion | ScaleCausal:
    """Return the rule that was encoded as integers.

    Args:
        numbers: the result of `encode`.
    """
    kind, fields = KINDS[numbers[0]], numbers[1:]
    return ScaleCausal(tuple(fields)) if kind is ScaleCausal else kind(*fields)  # type: ignore[arg-type]


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")

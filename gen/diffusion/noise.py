"""Randomness that belongs to the sample: every draw is a function of (the sample's seed, the draw's name).

So images do not change with batch size, number of devices, or after a resume, and no generator state is ever saved.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError

__all__ = ["Noise", "derive", "sample_seeds", "training_noise"]


def derive(*parts: int | str) -> int:
    """A 63-bit seed that depends on all parts and on nothing else."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sample_seeds(seed: int | Sequence[int], n: int, start: int = 0) -> list[int]:
    """One seed per sample: derived from a single number and the sample's index, or the given list itself.

    Raises UserError for what is no whole number, and for a list that is too short.
    """
    if not isinstance(seed, Iterable) or getattr(seed, "ndim", 1) == 0:
        number = _whole(seed)
        return [derive("sample", number, i) for i in range(start, start + n)]
    seeds = [_whole(s) for s in seed]
    if start < 0 or len(seeds) < start + n:
        raise UserError(f"{len(seeds)} seeds for samples {start} to {start + n - 1}")
    return seeds[start : start + n]


def _whole(seed: Any) -> int:
    """A seed as Python's int: 0, numpy's 0 and torch's 0 are one seed, and their repr is not."""
    try:
        if isinstance(seed, bool):
            raise TypeError
        return operator.index(seed)
    except TypeError:
        raise UserError(f"a seed is a whole number, got {seed!r}") from None


def training_noise(seed: int, step: int, indices: Iterable[int]) -> Noise:
    """The noise of one training step, by the samples' places in the whole run's stream."""
    return Noise(tuple(derive("train", seed, step, i) for i in indices))


@dataclass(frozen=True)
class Noise:
    """A batch's randomness: one seed per sample, any number of named draws."""

    seeds: tuple[int, ...]

    def normal(self, name: int | str, shape: Sequence[int]) -> Tensor:
        """Unit normal numbers [B, *shape], float32 on the CPU (cast them: a seed means one image in any precision)."""
        out = torch.empty(len(self.seeds), *shape)
        for row, seed in zip(out, self.seeds, strict=True):
            row.normal_(generator=torch.Generator().manual_seed(derive(seed, name)))
        return out

    def uniform(self, name: int | str, n: int | None = None) -> Tensor:
        """Uniform numbers in [0, 1), float64: [B], or [B, n], of which the first are the same whatever n is."""
        if n is None:
            return torch.tensor([derive(seed, name) * 2.0**-63 for seed in self.seeds], dtype=torch.float64)
        out = torch.empty(len(self.seeds), n, dtype=torch.float64)
        for row, seed in zip(out, self.seeds, strict=True):
            row.uniform_(generator=torch.Generator().manual_seed(derive(seed, name)))
        return out

    def integers(self, name: int | str, high: int) -> Tensor:
        """Uniform integers in [0, high), int64 [B]."""
        return (self.uniform(name) * high).long()

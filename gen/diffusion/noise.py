"""Randomness that belongs to the sample: every draw is a function of (the sample's seed, the draw's name).

So images do not change with batch size, number of devices, or after a resume, and no generator state is ever saved.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import SupportsIndex

import torch
from torch import Tensor

from gen.config.errors import UserError, shown

__all__ = ["Noise", "derive", "sample_seeds", "training_noise"]


def derive(*parts: int | str) -> int:
    """Hash a tuple of integers and words to a 63-bit seed.

    Args:
        *parts: what the seed depends on.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sample_seeds(seed: int | Sequence[int], n: int, start: int = 0) -> list[int]:
    """Return one seed per sample.

    Args:
        seed: a number, from which each sample's seed is derived by its index; or the list of all samples' seeds, which
            are taken as they are: 5 and [5] are different noise.
        n: number of samples.
        start: index of the first.

    Raises:
        UserError: for a seed that is no whole number, and for a list of another length; of samples that begin later, a
            shorter one.
    """
    if not isinstance(seed, Iterable) or getattr(seed, "ndim", 1) == 0:
        number = _whole(seed)
        return [derive("sample", number, i) for i in range(start, start + n)]
    seeds = [_whole(s) for s in seed]
    if start < 0 or len(seeds) < start + n or (not start and len(seeds) > n):
        raise UserError(f"{len(seeds)} seeds for samples {start} to {start + n - 1}: give a number, or one for each")
    return seeds[start : start + n]


def _whole(seed: object) -> int:
    """A seed as Python's int: numpy's 0 and torch's 0 are the same seed as 0, though their repr differs."""
    if isinstance(seed, SupportsIndex) and not isinstance(seed, bool):
        with suppress(TypeError):  # a float tensor has __index__, which refuses
            whole = operator.index(seed)
            if abs(whole) < 2**64:
                return whole
    raise UserError(f"a seed is a whole number of at most 64 bits, got {shown(seed)}")


def training_noise(seed: int, step: int, indices: Iterable[int]) -> Noise:
    """Return the noise of one training step.

    Args:
        seed: the run's.
        step: the step.
        indices: the samples' positions in the run's stream of data.
    """
    return Noise(tuple(derive("train", seed, step, i) for i in indices))


@dataclass(frozen=True)
class Noise:
    """A batch's randomness: any number of named draws from one seed per sample.

    Attributes:
        seeds: one per sample.
    """

    seeds: tuple[int, ...]

    def normal(self, name: int | str, shape: Sequence[int]) -> Tensor:
        """Draw unit normal numbers [B, *shape], float32 on the CPU in any precision, so a seed means one image."""
        out, generator = torch.empty(len(self.seeds), *shape), torch.Generator()
        for row, seed in zip(out, self.seeds, strict=True):
            row.normal_(generator=generator.manual_seed(derive(seed, name)))
        return out

    def uniform(self, name: int | str, n: int | None = None) -> Tensor:
        """Draw uniform numbers in [0, 1), float64 [B], or [B, n], whose first columns do not depend on n."""
        if n is None:
            return torch.tensor([derive(seed, name) * 2.0**-63 for seed in self.seeds], dtype=torch.float64)
        out, generator = torch.empty(len(self.seeds), n, dtype=torch.float64), torch.Generator()
        for row, seed in zip(out, self.seeds, strict=True):
            row.uniform_(generator=generator.manual_seed(derive(seed, name)))
        return out

    def integers(self, name: int | str, high: int) -> Tensor:
        """Draw uniform integers in [0, high), int64 [B]."""
        return (self.uniform(name) * high).long()

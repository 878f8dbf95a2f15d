"""Sequences of known laws: how near a mixer of tokens comes to what can be known of noisy ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.data.lib.tensors import Tensors, content_hash, split_indices
from gen.diffusion.noise import derive
from gen.diffusion.path import NoisePath
from gen.diffusion.worlds import CorrelatedMixture

__all__ = ["Sequences"]


@dataclass(frozen=True)
class Sequences:
    """Mixtures of Gaussian sequences; a fifth is held out. An item's x is a picture of one row, [1, 1, length].

    "smooth": autoregressive, each number .95 of the one before and the rest new. "periodic": repeats itself with one of
    eight periods, 5 to 12, and a hundredth of its variance is noise. "permuted": the second half is the first in one of
    eight fixed orders, with noise of deviation .05. A convolution, the same for all, reaches the least loss of the
    first alone; the second asks to find a period, the third to look where the contents say.

    Attributes:
        law: "smooth", "periodic" or "permuted".
        length: of a sequence, even.
        n: number of sequences, "train" and "test" together.
    """

    pictures = False
    classes = 0

    law: Literal["smooth", "periodic", "permuted"] = "periodic"
    length: int = 64
    n: int = 20_000

    def __post_init__(self) -> None:
        check_fields(self, length="[2, 4096]", n="[2, inf)")
        if self.length % 2:
            raise UserError(f"Sequences.length {self.length}; it has two halves and must be even")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, 1, self.length)

    def covariances(self) -> Tensor:
        """Return those of all kinds, float64 [K, length, length]."""
        i, one = torch.arange(self.length), torch.eye(self.length, dtype=torch.float64)
        apart = i[:, None] - i
        if self.law == "smooth":
            return (0.95 ** apart.abs().double())[None]
        if self.law == "periodic":
            return torch.stack([((apart % period == 0).double() + 0.01 * one) / 1.01 for period in range(5, 13)])
        half, generator = self.length // 2, torch.Generator().manual_seed(derive("permutations", self.length))
        orders = [torch.randperm(half, generator=generator) for _ in range(8)]
        maps = [torch.cat([one[:half, :half], one[:half, :half][order]]) for order in orders]
        noise = 0.0025 * torch.diag((i >= half).double())
        return torch.stack([to @ to.mT + noise for to in maps])

    def world(self, path: NoisePath) -> CorrelatedMixture:
        """Return the exact denoiser of these data on a path, in float64, of x [B, length]."""
        return CorrelatedMixture(path, self.covariances())

    def open(self, split: str) -> Tensors:
        """Open "train" or "test"."""
        from gen.diffusion.path import Flow

        generator = torch.Generator().manual_seed(derive("sequences", self.law, self.length))
        x = self.world(Flow()).sample(self.n, generator)[split_indices(split, self.n, self.n // 5)]
        x = x.float()[:, None, None]
        return Tensors(x, None, content_hash("sequences", x))

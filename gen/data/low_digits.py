"""Low digits: handwritten digits with noisy 4 x 4 versions, to be restored; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from gen.config.fields import check_fields
from gen.data.digits import Digits
from gen.data.lib.tensors import content_hash

__all__ = ["LowDigits", "Pairs"]


@dataclass(frozen=True)
class LowDigits:
    """The digits of gen.data.digits without their labels, and as "low" the means of their 2 x 2 blocks with noise.

    Attributes:
        noise: standard deviation, on the range [-1, 1].
        copies: times that "train" has each digit, always with other noise; "test" has each once.
    """

    noise: float = 0.1
    copies: int = 8

    def __post_init__(self) -> None:
        check_fields(self, noise="[0, 2]", copies="[1, 1000]")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1, 8, 8)

    @property
    def classes(self) -> int:
        return 0

    def open(self, split: str) -> Pairs:
        """Open "train" or "test"."""
        train = split == "train"
        digits = Digits().open(split)
        x = torch.stack([digits[i]["x"] for i in range(len(digits))]).repeat(self.copies if train else 1, 1, 1, 1)
        low = avg_pool2d(x, 2)
        generator = torch.Generator().manual_seed(0 if train else 1)
        return Pairs(x, low + self.noise * torch.randn(low.shape, generator=generator))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Items {"x", "low"}, float32.

    Attributes:
        x: pictures [N, 1, 8, 8] in [-1, 1].
        low: their degraded versions [N, 1, 4, 4].
    """

    x: Tensor
    low: Tensor

    @cached_property
    def fingerprint(self) -> str:
        """A hash of both."""
        return content_hash("pairs", self.x, self.low)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": self.x[i], "low": self.low[i]}

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the items of some rows, stacked."""
        index = torch.tensor(rows)
        return {"x": self.x[index], "low": self.low[index]}

"""Two levels of time: a mixer within chunks and one over them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import part

__all__ = ["HiSS", "HiSSLayer"]


@dataclass(frozen=True)
class HiSS:
    """out_t = low(h)_t + W high(means)_c(t): a mixer of each chunk alone, and one of the means of what it gives.

    (Hierarchical state spaces, Bhirangi et al. 2024, arXiv 2402.10211, where the last token, the one that has seen the
    chunk, stands for it; read both ways, none has, so it is the mean.)

    Attributes:
        chunk: tokens of a chunk, of which their number is a multiple; with the width of the grid chunks are its lines.
        low, high: the two mixers.
    """

    chunk: int = 4
    low: Any = part("models.layers.mixers", default="mamba")
    high: Any = part("models.layers.mixers", default="mamba")

    def __post_init__(self) -> None:
        check_fields(self, chunk="[1, inf)")

    @property
    def heads(self) -> int:
        """What the width is a multiple of."""
        return math.lcm(*(getattr(level, "heads", 1) for level in (self.low, self.high)))

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width on a grid, whose chunks are sequences of one row.

        Raises:
            UserError: for a number of tokens that does not divide into chunks.
        """
        count = grid[0] * grid[1]
        if count % self.chunk:
            raise UserError(f"HiSS.chunk {self.chunk}; allowed: a divisor of the number of tokens, {count}")
        low, high = (of.build(width, (1, n)) for of, n in ((self.low, self.chunk), (self.high, count // self.chunk)))
        return HiSSLayer(width, self.chunk, low, high)


class HiSSLayer(nn.Module):
    """Tokens h [B, T, width] -> [B, T, width].

    Args:
        width: of the tokens.
        chunk: see HiSS.
        low, high: modules.
    """

    def __init__(self, width: int, chunk: int, low: nn.Module, high: nn.Module):
        super().__init__()
        self.chunk, self.low, self.high = chunk, low, high
        self.up = nn.Linear(width, width)

    def forward(self, h: Tensor, rope: object = None) -> Tensor:
        inside: Tensor = self.low(h.reshape(-1, self.chunk, h.shape[-1])).unflatten(0, (len(h), -1))
        above: Tensor = self.up(self.high(inside.mean(2)))  # [B, chunks, width]
        return (inside + above[:, :, None]).flatten(1, 2)

"""Softmax attention, of all tokens or of those near."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from gen.config.fields import check_fields
from gen.models.layers import attention

__all__ = ["Attention"]


@dataclass(frozen=True)
class Attention:
    """Multi-head softmax attention, DiT's mixer.

    Attributes:
        heads: of it.
        radius: a token attends to those at most so many rows and columns away; 0 for all.
    """

    heads: int = 4
    radius: int = 0

    def __post_init__(self) -> None:
        check_fields(self, heads="[1, inf)", radius="[0, inf)")

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return the module for tokens of a width on a grid."""
        return Window(width, self.heads, grid, self.radius) if self.radius else attention.Attention(width, self.heads)


class Window(attention.Attention):
    """Attention within a square around each token, by a mask.

    Args:
        width, heads: of the tokens and the attention.
        grid: rows and columns.
        radius: of the square, tokens.
    """

    near: Tensor

    def __init__(self, width: int, heads: int, grid: tuple[int, int], radius: int):
        super().__init__(width, heads)
        row, column = (torch.arange(count) for count in grid)
        row, column = row.repeat_interleave(grid[1]), column.repeat(grid[0])
        apart = [(place[:, None] - place).abs() <= radius for place in (row, column)]
        self.register_buffer("near", apart[0] & apart[1], persistent=False)  # [T, T]

    def forward(self, h: Tensor, rope: object = None) -> Tensor:
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, T, d]
        return self.proj(scaled_dot_product_attention(q, k, v, self.near).transpose(1, 2).flatten(2))

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

    def build(self, width: int, side: int) -> nn.Module:
        """Return the module for tokens of a width on a grid of side x side."""
        return Window(width, self.heads, side, self.radius) if self.radius else attention.Attention(width, self.heads)


class Window(attention.Attention):
    """Attention within a square around each token, by a mask.

    Args:
        width, heads: of the tokens and the attention.
        side: of the grid.
        radius: of the square, tokens.
    """

    near: Tensor

    def __init__(self, width: int, heads: int, side: int, radius: int):
        super().__init__(width, heads)
        row, column = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
        apart = [(place[:, None] - place).abs() <= radius for place in (row, column)]
        self.register_buffer("near", apart[0] & apart[1], persistent=False)  # [T, T]

    def forward(self, h: Tensor, rope: object = None) -> Tensor:
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, heads, T, d]
        return self.proj(scaled_dot_product_attention(q, k, v, self.near).transpose(1, 2).flatten(2))

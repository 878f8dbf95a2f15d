"""Between images and tokens."""

from __future__ import annotations

from torch import Tensor

__all__ = ["unpatchify"]


def unpatchify(tokens: Tensor, patch: int) -> Tensor:
    """Tokens [B, T, patch * patch * C] of a square image, row by row, channel fastest, as the image [B, C, H, W]."""
    side = round(tokens.shape[1] ** 0.5)
    image = tokens.reshape(len(tokens), side, side, patch, patch, -1)  # [B, row, column, y, x, C]
    return image.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

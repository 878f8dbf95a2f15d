"""Mixers of tokens for gen.models.mixer: one file each. This page is the contract."""

from __future__ import annotations

from typing import Protocol

from torch import nn

__all__ = ["Mixer"]


class Mixer(Protocol):
    """A plug-in of this folder: a frozen dataclass.

    Whatever reads tokens in their order runs in both directions (lib/directions.py). If it has `heads`, the width is a
    multiple of them.
    """

    def build(self, width: int, grid: tuple[int, int]) -> nn.Module:
        """Return a module with forward(h [B, T, width], rope=None) -> [B, T, width].

        Args:
            width: channels of a token.
            grid: rows and columns of the T = rows * columns tokens, which come row by row; a sequence is one row.
        """
        ...

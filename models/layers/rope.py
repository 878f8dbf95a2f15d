"""Rotary embedding of positions on a grid: q and k are rotated by angles, so that they meet by their distance alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Rope", "axial_angles", "interleaved_angles"]

THETA = 10_000.0


class Rope(nn.Module):
    """The rotation of each token's channels, two neighbouring ones as a pair; angles [T, d / 2], radians.

    A rotation keeps lengths, and the product of a rotated q and a rotated k depends on the difference of their angles
    only (RoFormer, Su et al. 2021). saved: keep the tables in the state dict, as some published models do.

    Attributes:
        freqs_cos, freqs_sin: float32 [T, d], for gen.kernels.rope.norm_rope, of "adjacent" pairs.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, angles: Tensor, saved: bool = True):
        super().__init__()
        both = angles.repeat_interleave(2, -1)  # [T, d]
        self.register_buffer("freqs_cos", both.cos().float(), persistent=saved)
        self.register_buffer("freqs_sin", both.sin().float(), persistent=saved)


def axial_angles(dim: int, side: int) -> Tensor:
    """Return the angles of a square grid's cells, row by row: first those of the row, then the column.

    Pair i of either half is rotated by position * 10000^(-4 i / dim). (EVA-02, Fang et al. 2023; LightningDiT.)

    Args:
        dim: channels of a head, divisible by 4.
        side: cells on a side.

    Returns:
        float64 [side^2, dim / 2], radians.
    """
    row, column = _axes(torch.arange(side, dtype=torch.float64), dim)
    return torch.cat([row, column], -1).flatten(0, 1)


def interleaved_angles(dim: int, side: int, span: float = 16.0) -> Tensor:
    """Return the angles of a square grid's cells, row by row: column, row, column, row ...

    Frequencies are those of `axial_angles`.

    Args:
        dim: channels of a head, divisible by 4.
        side: cells on a side.
        span: positions are spread over 0 .. span, both included, whatever the side (DDT).

    Returns:
        float64 [side^2, dim / 2], radians.
    """
    row, column = _axes(torch.linspace(0, span, side, dtype=torch.float64), dim)
    return torch.stack([column, row], -1).flatten(2).flatten(0, 1)


def _axes(positions: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return the angles of a cell's row and of its column, each [side, side, dim / 4]."""
    w = THETA ** (-4 * torch.arange(dim // 4, dtype=torch.float64) / dim)
    angle, side = positions[:, None] * w, len(positions)
    return angle[:, None].expand(-1, side, -1), angle[None].expand(side, -1, -1)

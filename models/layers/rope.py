"""Rotary embedding of places on a grid: q and k are turned by angles, so that they meet by their distance alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Rope", "axial_angles", "interleaved_angles"]

THETA = 10_000.0


class Rope(nn.Module):
    """By how much each token's channels turn, two neighbouring ones as a pair; angles [T, d / 2], radians.

    A turn keeps lengths, and the product of a turned q and a turned k depends on the difference of their angles only
    (RoFormer, Su et al. 2021). freqs_cos, freqs_sin float32 [T, d]: for gen.kernels.rope.norm_rope, of "adjacent"
    pairs. saved: whether they are in the state dict, as some published ones.
    """

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, angles: Tensor, saved: bool = True):
        super().__init__()
        both = angles.repeat_interleave(2, -1)  # [T, d]
        self.register_buffer("freqs_cos", both.cos().float(), persistent=saved)
        self.register_buffer("freqs_sin", both.sin().float(), persistent=saved)


def axial_angles(dim: int, side: int) -> Tensor:
    """Angles of a square grid's cells, row by row, float64 [side^2, dim / 2]: first those of the row, then the column.

    Pair i of either half turns by place * 10000^(-4 i / dim). (EVA-02, Fang et al. 2023; LightningDiT.)
    """
    row, column = _axes(torch.arange(side, dtype=torch.float64), dim)
    return torch.cat([row, column], -1).flatten(0, 1)


def interleaved_angles(dim: int, side: int, span: float = 16.0) -> Tensor:
    """Angles of a square grid's cells, row by row, float64 [side^2, dim / 2]: column, row, column, row ...

    Frequencies as in `axial_angles`; places are spread over 0 .. span, both included, whatever the side (DDT).
    """
    row, column = _axes(torch.linspace(0, span, side, dtype=torch.float64), dim)
    return torch.stack([column, row], -1).flatten(2).flatten(0, 1)


def _axes(places: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The angles of a cell's row and of its column, each [side, side, dim / 4]."""
    w = THETA ** (-4 * torch.arange(dim // 4, dtype=torch.float64) / dim)
    angle, side = places[:, None] * w, len(places)
    return angle[:, None].expand(-1, side, -1), angle[None].expand(side, -1, -1)

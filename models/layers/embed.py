"""Embeddings: of time as waves, of positions on a grid, of a class or a vector with a value for "none"."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = [
    "ClassEmbedding", "GaussianTimeEmbedding", "TimeEmbedding", "VectorEmbedding", "convert_time", "grid_embedding",
    "waves",
]  # fmt: skip


def waves(t: Tensor, dim: int, max_period: float = 10_000.0, freq_shift: int = 0) -> Tensor:
    """Return cos(t w_i), then sin(t w_i), with w_i = max_period^(-i / (dim/2 - freq_shift)): [B, dim].

    Args:
        t: times [B].
        dim: even.
        max_period: the longest wave's period over 2 pi.
        freq_shift: 0 as in DiT, 1 as in diffusers' port, which ends exactly at 1 / max_period.
    """
    half = dim // 2
    # Multiplied before divided, as the published code rounds it in float32.
    w = torch.exp(-math.log(max_period) * torch.arange(half, dtype=t.dtype, device=t.device) / (half - freq_shift))
    angle = t[:, None] * w
    return torch.cat([angle.cos(), angle.sin()], 1)


def convert_time(t: Tensor, scale: float, convention: str) -> Tensor:
    """Return scale * t, or scale * (1 - t), in at least float32: bfloat16 could not tell t = 998 from 999.

    Args:
        t: times [B].
        scale: factor.
        convention: what t = 1 means to the network, "noise" or "data"; "data" takes 1 - t.
    """
    t = t if t.dtype == torch.float64 else t.float()
    return scale * (1 - t if convention == "data" else t)


def grid_embedding(
    width: int,
    rows: int,
    columns: int | None = None,
    *,
    steps: tuple[float, float] = (1.0, 1.0),
    device: torch.device | str | None = None,
) -> Tensor:
    """Return the fixed 2-D embedding of a grid's cells, row by row, float32 [rows * columns, width].

    The first half of the channels encodes the column and the second half the row, as in the published models' weights;
    each half is sin then cos of position / 10000^(i / (width/4)). (MAE, He et al. 2021; DiT, Peebles & Xie 2022.)

    Args:
        width: divisible by 4.
        rows, columns: cells of the grid; None for a square.
        steps: from one row, and from one column, to the next.
        device: of the result; None for torch's default.
    """
    quarter = width // 4
    w = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64, device=device) / quarter)
    counts = (rows, rows if columns is None else columns)
    axes = list[Tensor]()
    for count, step in zip(counts, steps, strict=True):
        angle = (torch.arange(count, dtype=torch.float64, device=device) * step)[:, None] * w
        axes.append(torch.cat([angle.sin(), angle.cos()], 1))  # [rows or columns, width / 2]
    row, column = axes[0][:, None].expand(-1, counts[1], -1), axes[1][None].expand(counts[0], -1, -1)
    return torch.cat([column, row], 2).flatten(0, 1).float()


class TimeEmbedding(nn.Module):
    """Waves through a two-layer network: t [B] -> [B, width].

    dim: number of waves. scale, convention: see convert_time. freq_shift, max_period: see waves.
    """

    def __init__(
        self,
        width: int,
        dim: int = 256,
        *,
        freq_shift: int = 0,
        max_period: float = 10_000.0,
        scale: float = 1.0,
        convention: str = "noise",
    ):
        super().__init__()
        self.dim, self.freq_shift, self.max_period = dim, freq_shift, max_period
        self.scale, self.convention = scale, convention
        self.mlp = nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        t = convert_time(t, self.scale, self.convention)
        wave = waves(t, self.dim, self.max_period, self.freq_shift)  # [B, dim]
        return self.mlp(wave.to(next(self.mlp.parameters()).dtype))


class GaussianTimeEmbedding(nn.Module):
    """sin(2 pi t W), then cos, of fixed random frequencies W ~ N(0, 1), through a two-layer network: [B] -> [B, width].

    From "Fourier Features" (Tancik et al. 2020), as RAE's denoisers have it (Zheng et al. 2025). waves: how many W
    there are. scale, convention: see convert_time.
    """

    def __init__(self, width: int, waves: int = 256, *, scale: float = 1.0, convention: str = "noise"):
        super().__init__()
        self.scale, self.convention = scale, convention
        self.W = nn.Parameter(torch.randn(waves), requires_grad=False)
        self.mlp = nn.Sequential(nn.Linear(2 * waves, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        t = convert_time(t, self.scale, self.convention)
        angle = t[:, None] * (2 * math.pi * self.W.to(t.dtype))  # [B, waves]
        return self.mlp(torch.cat([angle.sin(), angle.cos()], 1).to(self.W.dtype))


class ClassEmbedding(nn.Module):
    """One learned row per class and, with `null`, a last one for "no class": y int64 [B] -> [B, width]."""

    def __init__(self, classes: int, width: int, null: bool = True):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + null, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


class VectorEmbedding(nn.Module):
    """A two-layer network on vectors [B, numbers] -> [B, width]; `none`, a learned vector, stands for no vector."""

    def __init__(self, numbers: int, width: int):
        super().__init__()
        self.none = nn.Parameter(torch.randn(numbers))
        self.mlp = nn.Sequential(nn.Linear(numbers, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, vector: Tensor) -> Tensor:
        return self.mlp(vector.to(self.none.dtype))

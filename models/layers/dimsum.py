"""DiMSUM's block: Mamba scans half of the channels in space, the other half in wavelet bands (Phung et al. 2024).

Names in the state dict are those of the public code, VinAIResearch/DiMSUM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from gen.diffusion.tap import Tap, call_site
from gen.kernels.attention import attention_qkv
from gen.models.layers.block import modulate
from gen.models.layers.ssm.mamba import Mamba
from gen.models.layers.wavelet import packet_matrix

__all__ = ["CrossFusion", "DiMSUMBlock", "GeGLU", "SpatialMamba", "WaveletMamba", "raster", "windows"]


def raster(side: int, transpose: bool = False, reverse: bool = False) -> Tensor:
    """The cells of a square grid in the order of a scan, int64 [side^2]: by rows or columns, forwards or backwards."""
    cells = torch.arange(side * side).reshape(side, side)
    order = (cells.mT if transpose else cells).flatten()
    return order.flip(0) if reverse else order


def windows(side: int, window: int, transpose: bool = False) -> Tensor:
    """The same, window by window, each `window` cells wide and high: int64 [side^2] (LocalMamba, Huang et al. 2024).

    transpose: windows, and the cells in each, column by column.
    """
    cells = torch.arange(side * side).reshape(side // window, window, side // window, window)
    return cells.permute(2, 0, 3, 1).flatten() if transpose else cells.permute(0, 2, 1, 3).flatten()


class GeGLU(nn.Module):
    """Each token by itself: w3(gelu(a) * b) with a and b the halves of w12(h), GELU in its tanh form (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        a, b = self.w12(h).chunk(2, -1)
        return self.w3(gelu(a, approximate="tanh") * b)


class _Modulated(nn.Module):
    """A Mamba whose input is shifted and scaled and whose output is gated by a condition c [B, condition]."""

    def __init__(self, width: int, condition: int, state: int, told: bool):
        super().__init__()
        self.told = told
        self.mixer = Mamba(width, state, condition=condition if told else None)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(condition, 3 * width))

    def scan(self, h: Tensor, c: Tensor, order: Tensor | None = None) -> Tensor:
        """What is added to tokens h [B, T, width], which are scanned in this order, or as they lie."""
        shift, scale, gate = self.adaLN_modulation(c)[:, None].chunk(3, -1)  # each [B, 1, width]
        h = modulate(h, shift, scale)
        return gate * self.mixer(h, c if self.told else None, order)


class SpatialMamba(_Modulated):
    """What a scan over a grid, row by row, adds to its tokens h [B, side^2, width]; `order` as of `raster`."""

    order: Tensor

    def __init__(self, width: int, condition: int, state: int, told: bool, order: Tensor):
        super().__init__(width, condition, state, told)
        self.register_buffer("order", order, persistent=False)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return self.scan(h, c, self.order)


class WaveletMamba(_Modulated):
    """What a scan over wavelet bands adds to the tokens h [B, side^2, width] of a grid.

    Squares of p x p tokens, p = 2^levels, become their p^2 Haar bands, each divided by p; those lie in the square's
    place and are scanned window by window, windows being side / p wide; and what the scan adds goes back the same way.
    mixed: which number of a square lies where. The public code, where the order (band, channel) is read as (channel,
    place), is mixed: channel j of place i is number j p^2 + i of the square, so that a channel belongs to one band and
    places differ in their channels. Otherwise place i is band i, with its channels in order.
    """

    matrix: Tensor
    into: Tensor
    out_of: Tensor
    order: Tensor
    back: Tensor

    def __init__(
        self, width: int, condition: int, state: int, told: bool, side: int, levels: int, mixed: bool, transpose: bool
    ):
        super().__init__(width, condition, state, told)
        self.p, self.mixed = 2**levels, mixed
        squares = windows(side, self.p)  # token n of the sequence of squares is cell squares[n] of the grid
        order = squares.argsort()[windows(side, side // self.p, transpose)]
        self.register_buffer("matrix", (packet_matrix(levels) / self.p).float(), persistent=False)  # exact: powers of 2
        self.register_buffer("into", squares, persistent=False)
        self.register_buffer("out_of", squares.argsort(), persistent=False)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return self.image(self.scan(self.bands(h), c))

    def bands(self, h: Tensor) -> Tensor:
        """Tokens h [B, T, width] of the grid, as bands in the order of the scan."""
        squares = h[:, self.into].reshape(len(h), -1, self.p**2, h.shape[2])
        bands = self.matrix @ squares  # [B, T / p^2, p^2, width]
        if self.mixed:
            bands = bands.flatten(2).reshape(*bands.shape[:2], -1, self.p**2).mT
        return bands.reshape(h.shape)[:, self.order]

    def image(self, h: Tensor) -> Tensor:
        """The reverse of `bands`."""
        bands = h[:, self.back].reshape(len(h), -1, self.p**2, h.shape[2])
        if self.mixed:
            bands = bands.mT.reshape(*bands.shape[:2], self.p**2, -1)
        squares: Tensor = (self.p**2 * self.matrix.mT) @ bands
        return squares.reshape(h.shape)[:, self.out_of]


class CrossFusion(nn.Module):
    """Two halves of the channels, each [B, T, width / 2], look at each other: -> [B, T, width]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv1 = nn.Linear(width // 2, 3 * (width // 2))
        self.qkv2 = nn.Linear(width // 2, 3 * (width // 2))
        self.proj = nn.Linear(width, width)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        q1, k1, v1 = self.qkv1(first).unflatten(-1, (3, self.heads, -1)).unbind(2)  # [B, T, heads, width / 2 / heads]
        q2, k2, v2 = self.qkv2(second).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = torch.cat([attention_qkv(q1, k2, v2), attention_qkv(q2, k1, v1)], 2).flatten(2)
        return self.proj(mixed)


class DiMSUMBlock(nn.Module):
    """Tokens h [B, T, width] under the condition c [B, width] -> [B, T, width], which holds the block's own norm of h.

    norm; the halves' Mambas; their fusion, added; then a gated product per token, added. Sites, `site` being the
    block's own name: "{site}.attn" is what the Mambas and the fusion add, inside it "{site}.attn.spatial" and
    "{site}.attn.wavelet" what the Mambas add to their halves, and "{site}.mlp" what the product adds.
    """

    def __init__(self, spatial: SpatialMamba, wavelet: WaveletMamba, width: int, heads: int):
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.spatial_mamba = spatial
        self.freq_mamba = wavelet
        self.proj = CrossFusion(width, heads)
        self.norm_2 = nn.RMSNorm(width, eps=1e-5)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.mlp = GeGLU(width, 4 * width)

    def forward(self, h: Tensor, c: Tensor, site: str, tap: Tap | None = None) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(c)[:, None].chunk(3, -1)

        def attn(h: Tensor) -> Tensor:
            first, second = h.chunk(2, -1)  # each [B, T, width / 2]
            first = first + call_site(tap, f"{site}.attn.spatial", lambda h: self.spatial_mamba(h, c), first)
            second = second + call_site(tap, f"{site}.attn.wavelet", lambda h: self.freq_mamba(h, c), second)
            return self.proj(first, second)

        def mlp(h: Tensor) -> Tensor:
            return gate * self.mlp(modulate(self.norm_2(h), shift, scale))

        h = self.norm(h)
        h = h + call_site(tap, f"{site}.attn", attn, h)
        return h + call_site(tap, f"{site}.mlp", mlp, h)

"""DiMSUM's block: Mamba scans half of the channels in space, the other half in wavelet bands (Phung et al. 2024).

Names in the state dict are those of the public code, VinAIResearch/DiMSUM.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from gen.diffusion.tap import Tap, call_site
from gen.kernels.attention import attention
from gen.models.layers.block import SwiGLU, modulate
from gen.models.layers.ssm.mamba import Mamba
from gen.models.layers.wavelet import packet_matrix

__all__ = ["CrossFusion", "DiMSUMBlock", "GeGLU", "SpatialMamba", "WaveletMamba", "raster", "windows"]


def raster(side: int, transpose: bool = False, reverse: bool = False) -> Tensor:
    """Return the cells of a square grid in the order of a scan, int64 [side^2].

    Args:
        side: cells on a side.
        transpose: by columns instead of rows.
        reverse: from the last to the first.
    """
    cells = torch.arange(side * side).reshape(side, side)
    order = (cells.mT if transpose else cells).flatten()
    return order.flip(0) if reverse else order


def windows(side: int, window: int, transpose: bool = False) -> Tensor:
    """Return the cells of a square grid window by window, int64 [side^2] (LocalMamba, Huang et al. 2024).

    Args:
        side: cells on a side.
        window: width and height of a window, cells.
        transpose: windows, and the cells in each, by columns instead of rows.
    """
    cells = torch.arange(side * side).reshape(side // window, window, side // window, window)
    return cells.permute(2, 0, 3, 1).flatten() if transpose else cells.permute(0, 2, 1, 3).flatten()


class GeGLU(SwiGLU):
    """Each token by itself: w3(gelu(a) * b) with a and b the halves of w12(h), GELU in its tanh form (Shazeer 2020)."""

    def gate(self, a: Tensor) -> Tensor:
        """Return gelu(a), elementwise."""
        return gelu(a, approximate="tanh")


class _Modulated(nn.Module):
    """A Mamba whose input is shifted and scaled and whose output is gated by a condition c [B, condition].

    conditioned: the Mamba takes c too.
    """

    def __init__(self, width: int, condition: int, state: int, conditioned: bool):
        super().__init__()
        self.conditioned = conditioned
        self.mixer = Mamba(width, state, condition=condition if conditioned else None)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(condition, 3 * width))

    def scan(self, h: Tensor, c: Tensor, order: Tensor | None = None) -> Tensor:
        """Return the residual at tokens h [B, T, width], scanned in an order of theirs, int64 [T], or as they lie."""
        shift, scale, gate = self.adaLN_modulation(c)[:, None].chunk(3, -1)  # each [B, 1, width]
        h = modulate(h, shift, scale)
        return gate * self.mixer(h, c if self.conditioned else None, order)


class SpatialMamba(_Modulated):
    """The residual at a grid's tokens h [B, side^2, width] of a scan in an order such as `raster`."""

    order: Tensor

    def __init__(self, width: int, condition: int, state: int, conditioned: bool, order: Tensor):
        super().__init__(width, condition, state, conditioned)
        self.register_buffer("order", order, persistent=False)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return self.scan(h, c, self.order)


class WaveletMamba(_Modulated):
    """The residual at a grid's tokens h [B, side^2, width] of a scan over wavelet bands.

    Squares of p x p tokens, p = 2^levels, become their p^2 Haar bands, each divided by p; the bands take the positions
    of the square's tokens and are scanned window by window, windows being side / p wide; and the scan's output is
    transformed back. mixed: layout of a square's numbers. In the public code, where the order (band, channel) is read
    as (channel, position), it is mixed: channel j of position i is number j p^2 + i of the square, so that a channel
    belongs to one band and positions differ in their channels. Otherwise position i is band i, with its channels in
    order.
    """

    matrix: Tensor
    squares: Tensor
    from_squares: Tensor
    order: Tensor
    from_order: Tensor

    def __init__(
        self,
        width: int,
        condition: int,
        state: int,
        conditioned: bool,
        side: int,
        levels: int,
        mixed: bool,
        transpose: bool,
    ):
        super().__init__(width, condition, state, conditioned)
        self.p, self.mixed = 2**levels, mixed
        squares = windows(side, self.p)  # token n of the sequence of squares is cell squares[n] of the grid
        order = squares.argsort()[windows(side, side // self.p, transpose)]
        self.register_buffer("matrix", (packet_matrix(levels) / self.p).float(), persistent=False)  # exact: powers of 2
        self.register_buffer("squares", squares, persistent=False)
        self.register_buffer("from_squares", squares.argsort(), persistent=False)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("from_order", order.argsort(), persistent=False)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        return self.image(self.scan(self.bands(h), c))

    def bands(self, h: Tensor) -> Tensor:
        """Return tokens h [B, T, width] of the grid as bands in the order of the scan."""
        squares = h[:, self.squares].reshape(len(h), -1, self.p**2, h.shape[2])
        bands = self.matrix @ squares  # [B, T / p^2, p^2, width]
        if self.mixed:
            bands = bands.flatten(2).reshape(*bands.shape[:2], -1, self.p**2).mT
        return bands.reshape(h.shape)[:, self.order]

    def image(self, h: Tensor) -> Tensor:
        """Return the tokens of the grid of bands h [B, T, width]; the reverse of `bands`."""
        bands = h[:, self.from_order].reshape(len(h), -1, self.p**2, h.shape[2])
        if self.mixed:
            bands = bands.mT.reshape(*bands.shape[:2], self.p**2, -1)
        squares: Tensor = (self.p**2 * self.matrix.mT) @ bands
        return squares.reshape(h.shape)[:, self.from_squares]


class CrossFusion(nn.Module):
    """Cross-attention of two halves of the channels, each [B, T, width / 2]: -> [B, T, width]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv1 = nn.Linear(width // 2, 3 * (width // 2))
        self.qkv2 = nn.Linear(width // 2, 3 * (width // 2))
        self.proj = nn.Linear(width, width)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        q1, k1, v1 = self.qkv1(first).unflatten(-1, (3, self.heads, -1)).unbind(2)  # [B, T, heads, width / 2 / heads]
        q2, k2, v2 = self.qkv2(second).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed = torch.cat([attention(q1, k2, v2), attention(q2, k1, v1)], 2).flatten(2)
        return self.proj(mixed)


class DiMSUMBlock(nn.Module):
    """Tokens h [B, T, width] under the condition c [B, width] -> [B, T, width], which includes the block's norm of h.

    norm; the halves' Mambas; their fusion, added; then a gated product per token, added. Sites, `site` being the
    block's own name: "{site}.attn" is the residual of the Mambas and the fusion, inside it "{site}.attn.spatial" and
    "{site}.attn.wavelet" the residuals of the Mambas at their halves, and "{site}.mlp" that of the product.
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

"""DiMSUM: Mamba over space and over wavelet bands, fused by cross-attention (Phung et al. 2024, arXiv 2411.04168).

Its weights were trained on SiT's GVP path, which is gen.diffusion.path.Trig with t = (1 - tau) pi / 2: tau, the time
that the network is passed, runs from noise at 0 to data at 1. Presets say so by time_convention = "data" and t_end =
pi / 2; on paths with t in [0, 1] set t_end = 1. The published weights predict dx/dtau, pi / 2 times
gen.diffusion.parameterisation.Velocity(toward="data") on Trig.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family, init
from gen.models.layers.block import Block, FinalLayer
from gen.models.layers.dimsum import DiMSUMBlock, GeGLU, SpatialMamba, WaveletMamba, raster
from gen.models.layers.embed import TimeEmbedding
from gen.models.layers.patch import PatchNet
from gen.models.layers.recompute import recomputed

__all__ = ["DiMSUM", "DiMSUMNet"]

SIZES = {"B/2": (12, 768, 2), "L/2": (16, 1024, 2), "L/4": (16, 1024, 4), "XL/2": (24, 1152, 2)}  # depth, width, patch
DIGITS = {
    "size": 8,
    "channels": 1,
    "classes": 10,
    "width": 64,
    "depth": 2,
    "heads": 4,
    "shared_every": 1,
    "fusion_heads": 4,
    "levels": 1,
    "state": 8,
    "drop_path": 0.0,
    "time_convention": "noise",
    "t_end": 1.0,
    "time_scale": 1000.0,
}


def _table() -> family.Presets:
    sizes = {
        f"DiMSUM-{name}": {"depth": d, "width": w, "patch": p, "time_scale": 1.0} for name, (d, w, p) in SIZES.items()
    }
    return {**sizes, "digits": DIGITS}


@dataclass(frozen=True)
class DiMSUM(family.Family):
    """A hybrid of Mamba and transformer; the defaults are the published DiMSUM-L/2, for 32 x 32 x 4 latents.

    Presets: "DiMSUM-B/2", "L/2", "L/4", "XL/2" and "digits".

    Attributes:
        size: height and width of x, pixels.
        patch: side of a token's square, pixels.
        channels: of x.
        classes: number of labels, 0 for none; the label table has one more row, for "no class".
        width: channels of a token; 768 (B), 1024 (L), 1152 (XL).
        depth: number of blocks; 12, 16, 24.
        heads: of the attention of the shared transformer block.
        shared_every: the shared transformer block follows every so many blocks; 0 for none.
        fusion_heads: of the cross-attention in each block.
        levels: of the Haar wavelet; 2^levels must divide the side of the grid of tokens.
        bands: layout of the wavelet's bands, "mixed" as published; see gen.models.layers.dimsum.WaveletMamba.
        state: numbers of state of Mamba, per channel.
        condition: the Mambas take the condition beside their modulation too, added before their SiLU. That is what the
            published weights' "cond_proj" is for, but the public convolution writes over it unread and hands it no
            gradient: what those weights really compute has condition False.
        drop_path: how often, per image, the last block's share is left out in training; falls linearly to 0 for the
            first block.
        final_norm: the output is read from the normed sum of all blocks; as published, False, from the last block
            alone, which holds a norm of that sum.
        learned_pos: train the embedding of positions.
        time_scale: factor on t / t_end, or on 1 - t / t_end if time_convention is "data".
        time_convention: what t = t_end means to the network; "data" as published.
        t_end: last time of the path; pi / 2 as published.
        freq_shift: of the waves of time (gen.models.layers.embed.waves).
    """

    time_range: ClassVar[float] = 1000.0
    presets: ClassVar[family.Presets] = _table()

    size: int = 32
    patch: int = 2
    channels: int = 4
    classes: int = 1000
    width: int = 1024
    depth: int = 16
    heads: int = 16
    shared_every: int = 4
    fusion_heads: int = 8
    levels: int = 2
    bands: Literal["mixed", "apart"] = "mixed"
    state: int = 16
    condition: bool = True
    drop_path: float = 0.1
    final_norm: bool = False
    learned_pos: bool = True
    time_scale: float = 1.0
    time_convention: Literal["noise", "data"] = "data"
    t_end: float = math.pi / 2
    freq_shift: int = 0

    def __post_init__(self) -> None:
        family.at_least(self, size=1, patch=1, channels=1, width=1, depth=1, heads=1, fusion_heads=1, state=1)
        family.at_least(self, classes=0, levels=0, shared_every=0)
        family.divisible(self, "size", self.patch, "patch")
        family.divisible(self, "width", 4)
        family.divisible(self, "width", self.heads, "heads")
        family.divisible(self, "width", 2 * self.fusion_heads, "2 * fusion_heads")
        side = self.size // self.patch
        if side % 2**self.levels:
            raise UserError(f"DiMSUM.levels {self.levels} needs a grid of tokens divisible by {2**self.levels}: {side}")
        check_fields(self, drop_path="[0, 1)", t_end="(0, inf)")

    def build(self) -> DiMSUMNet:
        """Return a fresh network: its output is zero."""
        return DiMSUMNet(self)


class DiMSUMNet(PatchNet):
    """DiMSUM's network; see gen.models.layers.patch.PatchNet. Names in the state dict are the published ones.

    Blocks add their tokens to a running sum of at least float32's precision, and sites are on that sum: "blocks.3" is
    the residual of block 3 (if the output is read from the last block alone, that one adds itself less the sum so far,
    so that leaving it out is the identity too), with those of DiMSUMBlock inside it, and "blocks.3.shared" the residual
    of the shared transformer block, with "blocks.3.shared.attn" and "blocks.3.shared.mlp".
    """

    adaln_only = False
    gradient_checkpointing = False

    def __init__(self, spec: DiMSUM):
        super().__init__(spec)
        self.pos_embed.requires_grad_(spec.learned_pos)
        self.blocks = nn.ModuleList(_block(spec, spec.size // spec.patch, i) for i in range(spec.depth))
        used = spec.shared_every and spec.depth >= spec.shared_every
        self.attn_block = Block(spec.width, spec.heads, 4 * spec.width, mlp=GeGLU) if used else None
        self.norm_f = nn.RMSNorm(spec.width, eps=1e-5) if spec.final_norm else None
        self.final_layer = FinalLayer(spec.width, spec.patch**2 * spec.channels)
        self._initialise()

    def time_embedding(self) -> nn.Module:
        """Return the embedding of time, [B] -> [B, width]."""
        spec = self.spec
        shift, scale = spec.freq_shift, spec.time_scale
        return _Time(spec.t_end, spec.width, freq_shift=shift, scale=scale, convention=spec.time_convention)

    def trunk(self, h: Tensor, c: Tensor, tap: Tap | None) -> Tensor:
        """Run all blocks on tokens h [B, T, width] under the condition c [B, width]."""
        kind, total = h.dtype, h.to(torch.promote_types(h.dtype, torch.float32))
        for i in range(self.spec.depth):

            def after(total: Tensor, i: int = i) -> Tensor:
                return total + call_site(tap, f"blocks.{i}", lambda total: self._residual(i, total, c, tap), total)

            total = call_site(tap, f"hidden.{i}", recomputed(self, after), total)
        h = total.to(kind)
        return h if self.norm_f is None else self.norm_f(h)

    def _residual(self, i: int, total: Tensor, c: Tensor, tap: Tap | None) -> Tensor:
        """Return what block i, and the shared one if it follows, add to the sum so far, [B, T, width]."""
        site, every, last = f"blocks.{i}", self.spec.shared_every, i == self.spec.depth - 1
        h: Tensor = self.blocks[i](total.to(c.dtype), c, site, tap)
        if self.attn_block is not None and (i + 1) % every == 0:
            shared = self.attn_block
            h = h + call_site(tap, f"{site}.shared", lambda h: shared(h, c, f"{site}.shared", tap), h)
        if last and self.norm_f is None:
            return h - total
        rate = self.spec.drop_path * i / max(self.spec.depth - 1, 1)
        if not self.training or not rate:
            return h
        kept = torch.rand(len(h), 1, 1, device=h.device) >= rate
        return h * kept / (1 - rate)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Initialise as torch does, biases zero but for Mamba's; what the condition shifts, scales or gates by is 0."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and module.bias is not None and not name.endswith("dt_proj"):
                nn.init.zeros_(module.bias)
            if name.endswith("out_proj"):
                module.weight.div_(self.spec.depth**0.5)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        init.xavier_patches(self.x_embedder["proj"])
        init.adaln_zero(self)


class _Time(TimeEmbedding):
    """The embedding of times on a path that ends at `end`, as if it ended at 1."""

    def __init__(self, end: float, width: int, **options: Any):
        super().__init__(width, **options)
        self.end = end

    def forward(self, t: Tensor) -> Tensor:
        return super().forward(t / self.end)


def _block(spec: DiMSUM, side: int, i: int) -> DiMSUMBlock:
    """Return block i: in space every second scan is reversed, and every second pair by columns; bands alternate."""
    half = (spec.width // 2, spec.width, spec.state, spec.condition)
    reverse = i % 2 == 1
    spatial = SpatialMamba(*half, raster(side, transpose=i % 4 >= 2, reverse=reverse))
    wavelet = WaveletMamba(*half, side, spec.levels, spec.bands == "mixed", transpose=reverse)
    return DiMSUMBlock(spatial, wavelet, spec.width, spec.fusion_heads)

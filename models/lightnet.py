"""LightNet as a denoiser: a diffusion transformer whose attention is one scan, additively recurrent (Qin et al. 2024).

Its cost grows with the number of tokens, not with its square: see gen.models.layers.lightnet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.models.layers import family, init
from gen.models.layers.block import Block, FinalLayer
from gen.models.layers.embed import grid_embedding
from gen.models.layers.lightnet import LightNetMixer, Lrpe, MdTpe
from gen.models.layers.patch import PatchNet

__all__ = ["LightNet", "LightNetNet"]

SIZES = {"S": (12, 384, 3), "B": (12, 768, 6), "L": (24, 1024, 8), "XL": (28, 1152, 9)}  # depth, width, heads


def _table() -> family.Presets:
    """Return the depths and widths of DiT at patch 2, with heads of 128 channels; and one for digits.

    On the 4 x 4 tokens of digits MD-LRPE's angles hardly differ and MD-TPE blurs: FID 3.5 after 1000 steps with both as
    they are, 2.0 with DiT's positions and a smaller base besides, 1.7 without MD-TPE (DiT 1.4).
    """
    sizes = {f"LightNet-{s}/2": {"depth": d, "width": w, "heads": h} for s, (d, w, h) in SIZES.items()}
    digits = {"size": 8, "channels": 1, "classes": 10, "width": 64, "depth": 4, "heads": 4, "gate_rank": 16}
    positions = {"absolute": True, "lrpe_base": 10.0, "tpe": False}
    return {**sizes, "digits": {**digits, **positions, "time_scale": 1000.0}}


@dataclass(frozen=True)
class LightNet(family.Family):
    """A denoiser of linear cost; the defaults are DiT-S/2's width and depth, with LightNet's heads of 128 channels.

    Without tpe, lrpe and absolute the order of the tokens is not seen. Presets: "LightNet-S/2", "B/2", "L/2", "XL/2"
    and "digits".

    Attributes:
        size: height and width of x, pixels.
        patch: side of a token's square, pixels.
        channels: of x.
        classes: number of labels, 0 for none; the label table has one more row, for "no class".
        width: channels of a token; 384 (S), 768 (B), 1024 (L), 1152 (XL), as DiT's.
        depth: number of blocks; 12, 12, 24, 28.
        heads: of the scan; 3, 6, 8, 9.
        mlp_ratio: hidden width of the MLP over width.
        gate_rank: rank of the output gate; 128 in flash-linear-attention.
        tpe: encode positions before the blocks (MD-TPE).
        lrpe: encode positions inside each block (MD-LRPE).
        lrpe_base: base of the angles of MD-LRPE, as of a rope.
        absolute: add DiT's fixed table of positions too, which LightNet has not.
        time_scale: factor on t.
        time_convention: what t = 1 means to the network; "data" passes it 1 - t.
        freq_shift: of the waves of time (gen.models.layers.embed.waves).
    """

    time_range: ClassVar[float] = 1000.0
    presets: ClassVar[family.Presets] = _table()

    size: int = 32
    patch: int = 2
    channels: int = 4
    classes: int = 1000
    width: int = 384
    depth: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    gate_rank: int = 128
    tpe: bool = True
    lrpe: bool = True
    lrpe_base: float = 10_000.0
    absolute: bool = False
    time_scale: float = 1.0
    time_convention: Literal["noise", "data"] = "noise"
    freq_shift: int = 0

    def __post_init__(self) -> None:
        family.at_least(self, size=1, patch=1, channels=1, width=1, depth=1, heads=1, gate_rank=1, classes=0)
        check_fields(self, mlp_ratio="(0, 1000]", lrpe_base="(0, inf)")
        family.divisible(self, "size", self.patch, "patch")
        family.divisible(self, "width", self.heads, "heads")

    def build(self) -> LightNetNet:
        """Return a fresh network: its output is zero and every block the identity."""
        return LightNetNet(self)


class LightNetNet(PatchNet):
    """LightNet's network; see gen.models.layers.patch.PatchNet. The site "blocks.3.attn" is the scan."""

    absolute: Tensor | None

    def __init__(self, spec: LightNet):
        super().__init__(spec)
        side, dim = spec.size // spec.patch, spec.width // spec.heads
        lrpe = Lrpe(side, spec.heads, dim, spec.lrpe_base) if spec.lrpe else None  # one table for all blocks
        self.blocks = nn.ModuleList(_block(spec, lrpe) for _ in range(spec.depth))
        self.final_layer = FinalLayer(spec.width, spec.patch**2 * spec.channels)
        self.apply(init.xavier)
        init.adaln_zero(self)

    def add_positions(self) -> None:
        """Add DiT's table, outside the state dict, and MD-TPE, as the spec says."""
        spec, side = self.spec, self.spec.size // self.spec.patch
        absolute = grid_embedding(spec.width, side) if spec.absolute else None
        self.register_buffer("absolute", absolute, persistent=False)
        self.tpe = MdTpe(spec.width, spec.heads, side) if spec.tpe else nn.Identity()

    def embed(self, x: Tensor) -> Tensor:
        """Return the tokens of an image x [B, C, H, W] with their positions, [B, T, width]."""
        h = self.tpe(self.x_embedder["proj"](x).flatten(2).mT)
        return h if self.absolute is None else h + self.absolute.to(h)


def _block(spec: LightNet, lrpe: Lrpe | None) -> Block:
    """Return a transformer's block with the scan as its attention."""
    block = Block(spec.width, 1, int(spec.mlp_ratio * spec.width))
    block.add_module("attn", LightNetMixer(spec.width, spec.heads, spec.gate_rank, lrpe))
    return block

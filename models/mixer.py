"""A transformer's shape with any mixer of tokens for its attention (gen.models.layers.mixers)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.net import sides
from gen.models.layers import family, init
from gen.models.layers.block import Block, FinalLayer
from gen.models.layers.mixers.lib.orders import Reordered, Sorted, scan_order
from gen.models.layers.patch import PatchNet

__all__ = ["Mixed", "MixedNet"]


@dataclass(frozen=True)
class Mixed(family.Family):
    """DiT with a mixer of your choice: `gen list models.layers.mixers`. Blocks are conditioned as DiT's, adaLN-Zero.

    The defaults are DiT-S/2's sizes for 32 x 32 x 4 latents. Preset: "digits".

    Attributes:
        mixer: see gen.models.layers.mixers.
        size: height and width of x, pixels: one number for squares, else both; a sequence has height 1.
        patch: side of a token's square, pixels.
        channels: of x.
        classes: number of labels, 0 for none; the label table has one more row, for "no class".
        width: channels of a token, a multiple of the mixer's heads.
        depth: number of blocks.
        mlp_ratio: hidden width of the MLP over width.
        order: "rows" reads the picture row by row in every block, "alternate" column by column in every second one,
            "zigzag" the same to and fro, "hilbert" along that curve, "learned" by a score that each block learns; see
            gen.models.layers.mixers.lib.orders.
        time_scale: factor on t.
        time_convention: what t = 1 means to the network; "data" passes it 1 - t.
        freq_shift: of the waves of time (gen.models.layers.embed.waves).
    """

    time_range: ClassVar[float] = 1000.0
    presets: ClassVar[family.Presets] = {
        "digits": {"size": 8, "channels": 1, "classes": 10, "width": 64, "depth": 4, "time_scale": 1000.0}
    }

    mixer: Any = part("models.layers.mixers", default="attention")
    size: int | tuple[int, int] = 32
    patch: int = 2
    channels: int = 4
    classes: int = 1000
    width: int = 384
    depth: int = 12
    mlp_ratio: float = 4.0
    order: Literal["rows", "alternate", "zigzag", "hilbert", "learned"] = "alternate"
    time_scale: float = 1.0
    time_convention: Literal["noise", "data"] = "noise"
    freq_shift: int = 0

    def __post_init__(self) -> None:
        family.at_least(self, size=1, patch=1, channels=1, width=1, depth=1, classes=0)
        check_fields(self, mlp_ratio="(0, 1000]")
        family.one_number_for_squares(self)
        family.divisible(self, "size", self.patch, "patch")
        family.divisible(self, "width", 4)
        family.divisible(self, "width", getattr(self.mixer, "heads", 1), "mixer.heads")

    def build(self) -> MixedNet:
        """Return a fresh network: its output is zero and every block the identity."""
        return MixedNet(self)


class MixedNet(PatchNet):
    """Mixed's network; see gen.models.layers.patch.PatchNet. The site "blocks.3.attn" is the mixer."""

    def __init__(self, spec: Mixed):
        super().__init__(spec)
        hidden = int(spec.mlp_ratio * spec.width)
        self.blocks = nn.ModuleList(Block(spec.width, 1, hidden) for _ in range(spec.depth))
        self.final_layer = FinalLayer(spec.width, spec.patch**2 * spec.channels)
        self.apply(init.xavier)
        init.adaln_zero(self)
        for i, block in enumerate(self.blocks):  # last: mixers keep their own initialisation
            block.add_module("attn", _mixer(spec, i))


def _mixer(spec: Mixed, block: int) -> nn.Module:
    """Return the mixer of a block, which reads the tokens in the spec's order."""
    height, width = sides(spec)
    grid = height // spec.patch, width // spec.patch
    if spec.order == "learned":
        return Sorted(spec.mixer.build(spec.width, (1, grid[0] * grid[1])), spec.width)
    order, grid = scan_order(spec.order, grid, block)
    mixer: nn.Module = spec.mixer.build(spec.width, grid)
    return mixer if order is None else Reordered(mixer, order)

"""LightNet as a denoiser: a diffusion transformer whose attention is one scan, additively recurrent (Qin et al. 2024).

Its cost grows with the number of tokens, not with its square: see gen.models.layers.lightnet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family, init
from gen.models.layers.block import Block, FinalLayer, run_block
from gen.models.layers.embed import ClassEmbedding, TimeEmbedding, grid_embedding
from gen.models.layers.lightnet import Lrpe, MdTpe, Mixer
from gen.models.layers.patch import unpatchify

__all__ = ["LightNet", "LightNetNet"]

SIZES = {"S": (12, 384, 3), "B": (12, 768, 6), "L": (24, 1024, 8), "XL": (28, 1152, 9)}  # depth, width, heads


def _table() -> dict[str, dict[str, Any]]:
    """The depths and widths of DiT at patch 2, with heads of 128 channels; and one for digits.

    On the 4 x 4 tokens of digits MD-LRPE's angles hardly differ and MD-TPE blurs: FID 3.5 after 1000 steps with both as
    they are, 2.0 with DiT's places and a smaller base besides, 1.7 without MD-TPE (DiT 1.4).
    """
    sizes = {f"LightNet-{s}/2": {"depth": d, "width": w, "heads": h} for s, (d, w, h) in SIZES.items()}
    digits = {"size": 8, "channels": 1, "classes": 10, "width": 64, "depth": 4, "heads": 4, "gate_rank": 16}
    places = {"absolute": True, "lrpe_base": 10.0, "tpe": False}
    return {**sizes, "digits": {**digits, **places, "time_scale": 1000.0}}


@dataclass(frozen=True)
class LightNet:
    """A denoiser of linear cost; the defaults are DiT-S/2's width and depth, with LightNet's heads of 128 channels.

    size: height and width of x. patch: side of a token's square. classes: 0 for no labels; otherwise the label table
    has one more row, for "no class". gate_rank: rank of the output gate (flash-linear-attention's default is 128).
    tpe, lrpe: the two encodings of place, before the blocks and inside each; lrpe_base: as of a rope. absolute: DiT's
    fixed embedding of places besides, which LightNet has not. Without all three the order is not seen. time_scale: t is
    multiplied by it first. time_convention: what t = 1 means to the network. freq_shift: see gen.models.layers.embed.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = _table()

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
        if self.size % self.patch:
            raise UserError(f"LightNet.size {self.size} is not divisible by LightNet.patch {self.patch}")
        if self.width % self.heads:
            raise UserError(f"LightNet.width {self.width} must be divisible by LightNet.heads {self.heads}")

    @staticmethod
    def preset(name: str, **changes: Any) -> LightNet:
        """ "LightNet-S/2" (or "S/2"), "B/2", "L/2", "XL/2", or "digits", with fields changed."""
        return family.preset(LightNet, LightNet.presets, name, changes)

    def build(self) -> LightNetNet:
        """The network, freshly initialised: its output is zero and every block the identity."""
        return LightNetNet(self)


class LightNetNet(nn.Module):
    """net(x [B, C, H, W], t [B], {"y": int64 [B]}) -> [B, C, H, W].

    Sites of a tap, as in DiT. What is added to the tokens: "blocks.3", inside it "blocks.3.attn" (the scan) and
    "blocks.3.mlp", inside these "blocks.3.attn.raw" and "blocks.3.mlp.raw". Whole values: "time", "trunk", "hidden.3"
    and "final".
    """

    absolute: Tensor | None

    def __init__(self, spec: LightNet):
        super().__init__()
        self.spec = spec
        side = spec.size // spec.patch
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(spec.channels, spec.width, spec.patch, spec.patch)})
        absolute = grid_embedding(spec.width, side) if spec.absolute else None
        self.register_buffer("absolute", absolute, persistent=False)
        self.tpe = MdTpe(spec.width, spec.heads, side) if spec.tpe else nn.Identity()
        self.t_embedder = TimeEmbedding(
            spec.width, freq_shift=spec.freq_shift, scale=spec.time_scale, convention=spec.time_convention
        )
        self.y_embedder = ClassEmbedding(spec.classes, spec.width) if spec.classes else None
        lrpe = (
            Lrpe(side, spec.heads, spec.width // spec.heads, spec.lrpe_base) if spec.lrpe else None
        )  # one table for all blocks
        self.blocks = nn.ModuleList(_block(spec, lrpe) for _ in range(spec.depth))
        self.final_layer = FinalLayer(spec.width, spec.patch**2 * spec.channels)
        self.apply(init.scratch)
        init.zero(self)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        *,
        s: Tensor | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        family.check(self.spec, x, t, cond, s)
        h = self.tpe(self.x_embedder["proj"](x).flatten(2).mT)  # [B, T, width]
        if self.absolute is not None:
            h = h + self.absolute.to(h)
        c = self.conditioning(t, cond, tap)  # [B, width]
        h = call_site(tap, "trunk", lambda h: self.trunk(h, c, tap), h)  # [B, T, width]
        return call_site(tap, "final", lambda h: unpatchify(self.final_layer(h, c), self.spec.patch), h)  # [B, C, H, W]

    def conditioning(self, t: Tensor, cond: Mapping[str, Tensor], tap: Tap | None = None) -> Tensor:
        """What the norms of all blocks are modulated by: [B, width]."""
        return family.conditioning(self, t, cond, tap)

    def trunk(self, h: Tensor, c: Tensor, tap: Tap | None) -> Tensor:
        """All blocks: tokens h [B, T, width] under the condition c [B, width]."""
        for i, block in enumerate(self.blocks):
            h = run_block(block, h, c, i, tap)  # [B, T, width]
        return h

    def null(self, cond: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The condition that stands for "no class"."""
        return family.null(self.spec, cond)


def _block(spec: LightNet, lrpe: Lrpe | None) -> Block:
    """A transformer's block with the scan in place of its attention."""
    block = Block(spec.width, 1, int(spec.mlp_ratio * spec.width))
    block.add_module("attn", Mixer(spec.width, spec.heads, spec.gate_rank, lrpe))
    return block

"""SSM: a transformer's shape with state-space mixers, run in both directions, in place of attention.

After Vision Mamba (Zhu et al. 2024), and DiffuSSM (Yan et al. 2023), which has S4D where the former has Mamba; blocks
are conditioned as in DiT (adaLN-Zero). The cost grows with the number of tokens, not with its square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family, init
from gen.models.layers.block import Block, FinalLayer, run_block
from gen.models.layers.embed import ClassEmbedding, TimeEmbedding, grid_embedding
from gen.models.layers.patch import unpatchify
from gen.models.layers.rope import Rope
from gen.models.layers.ssm.mamba import Mamba
from gen.models.layers.ssm.s4d import S4D

__all__ = ["SSM", "SSMNet"]

SIZES = {"S": (12, 384), "B": (12, 768), "L": (24, 1024), "XL": (28, 1152)}  # depth, width
PATCHES = (2, 4, 8)
# For 16 tokens 4 states do as well as 8; on one core a step costs 2.7 of DiT's (with s4d of 32 states 1.5).
DIGITS = {"size": 8, "channels": 1, "classes": 10, "width": 64, "depth": 4, "state": 4, "time_scale": 1000.0}


def _table() -> dict[str, dict[str, Any]]:
    """SSM-S/2 ... SSM-XL/8, of DiT's depths and widths, and one for digits."""
    sizes = {f"SSM-{s}/{p}": {"patch": p, "depth": d, "width": w} for s, (d, w) in SIZES.items() for p in PATCHES}
    return {**sizes, "digits": DIGITS}


@dataclass(frozen=True)
class SSM:
    """A denoiser of linear cost without attention: Mamba or S4D over the tokens in both directions, and MLPs.

    The defaults are SSM-S/2 for 32 x 32 x 4 latents. size: height and width of x. patch: side of a token's square.
    classes: 0 for no labels; otherwise the label table has one more row, for "no class". mixer: "mamba", whose step
    and maps depend on the token, or "s4d", one long convolution, the same for all. state: numbers of state per channel
    (the papers have 16 for Mamba and 64 for S4D; even for S4D). expand: inner channels of Mamba are expand * width;
    with 1 a block has about the parameters of DiT's. order: "rows" reads the picture row by row in every block,
    "alternate" column by column in every second one. time_scale: t is multiplied by it first. time_convention: what t =
    1 means to the network. freq_shift: see gen.models.layers.embed.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = _table()

    size: int = 32
    patch: int = 2
    channels: int = 4
    classes: int = 1000
    width: int = 384
    depth: int = 12
    mixer: Literal["mamba", "s4d"] = "mamba"
    state: int = 16
    expand: int = 1
    mlp_ratio: float = 4.0
    order: Literal["rows", "alternate"] = "alternate"
    time_scale: float = 1.0
    time_convention: Literal["noise", "data"] = "noise"
    freq_shift: int = 0

    def __post_init__(self) -> None:
        family.at_least(self, size=1, patch=1, channels=1, width=1, depth=1, state=1, expand=1, classes=0)
        if self.size % self.patch:
            raise UserError(f"SSM.size {self.size} is not divisible by SSM.patch {self.patch}")
        if self.width % 4:
            raise UserError(f"SSM.width {self.width} must be divisible by 4")
        if self.mixer == "s4d" and self.state % 2:
            raise UserError(f"SSM.state {self.state} must be even for the mixer s4d")

    @staticmethod
    def preset(name: str, **changes: Any) -> SSM:
        """ "SSM-S/2" (or "S/2") to "SSM-XL/8", or "digits", with fields changed."""
        return family.preset(SSM, SSM.presets, name, changes)

    def build(self) -> SSMNet:
        """The network, freshly initialised: its output is zero and every block the identity."""
        return SSMNet(self)


class SSMNet(nn.Module):
    """net(x [B, C, H, W], t [B], {"y": int64 [B]}) -> [B, C, H, W].

    Sites of a tap, as in DiT. What is added to the tokens: "blocks.3", inside it "blocks.3.attn" (the mixer) and
    "blocks.3.mlp", inside these "blocks.3.attn.raw" and "blocks.3.mlp.raw". Whole values: "time", "trunk", "hidden.3"
    and "final".
    """

    def __init__(self, spec: SSM):
        super().__init__()
        self.spec = spec
        side = spec.size // spec.patch
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(spec.channels, spec.width, spec.patch, spec.patch)})
        self.pos_embed = nn.Parameter(grid_embedding(spec.width, side)[None], requires_grad=False)
        self.t_embedder = TimeEmbedding(
            spec.width, freq_shift=spec.freq_shift, scale=spec.time_scale, convention=spec.time_convention
        )
        self.y_embedder = ClassEmbedding(spec.classes, spec.width) if spec.classes else None
        hidden = int(spec.mlp_ratio * spec.width)
        self.blocks = nn.ModuleList(Block(spec.width, 1, hidden) for _ in range(spec.depth))
        self.final_layer = FinalLayer(spec.width, spec.patch**2 * spec.channels)
        self.apply(init.scratch)
        init.zero(self)
        for i, block in enumerate(self.blocks):  # last: mixers keep the start that they were made with
            block.add_module("attn", Mixer(spec, by_column=spec.order == "alternate" and i % 2 == 1))

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
        h = self.pos_embed + self.x_embedder["proj"](x).flatten(2).mT  # [B, T, width]
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


class Mixer(nn.Module):
    """A state-space layer over the tokens [B, T, width] of a square picture, row by row or column by column."""

    columns: Tensor | None

    def __init__(self, spec: SSM, by_column: bool):
        super().__init__()
        self.side = spec.size // spec.patch
        self.by_column = by_column
        columns = torch.arange(self.side**2).reshape(self.side, self.side).mT.flatten() if by_column else None
        self.register_buffer("columns", columns, persistent=False)  # the tokens, column by column
        self.mixer: nn.Module
        if spec.mixer == "mamba":
            self.mixer = Mamba(spec.width, state=spec.state, expand=spec.expand, bidirectional=True)
        else:
            self.mixer = S4D(spec.width, state=spec.state, bidirectional=True)

    def forward(self, h: Tensor, rope: Rope | None = None) -> Tensor:
        if isinstance(self.mixer, Mamba):
            return self.mixer(h, order=self.columns)
        return self._turn(self.mixer(self._turn(h)))

    def _turn(self, h: Tensor) -> Tensor:
        """From one order to the other, and back."""
        if not self.by_column:
            return h
        return h.reshape(len(h), self.side, self.side, -1).transpose(1, 2).flatten(1, 2)

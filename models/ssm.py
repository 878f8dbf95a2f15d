"""SSM: a transformer's shape with state-space mixers, run in both directions, as its attention.

After Vision Mamba (Zhu et al. 2024), and DiffuSSM (Yan et al. 2023), which has S4D where the former has Mamba; blocks
are conditioned as in DiT (adaLN-Zero). The cost grows with the number of tokens, not with its square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.models.layers import family, init
from gen.models.layers.block import Block, FinalLayer
from gen.models.layers.patch import PatchNet
from gen.models.layers.rope import Rope
from gen.models.layers.ssm.mamba import Mamba
from gen.models.layers.ssm.s4d import S4D

__all__ = ["SSM", "SSMNet"]

SIZES = {"S": (12, 384), "B": (12, 768), "L": (24, 1024), "XL": (28, 1152)}  # depth, width
PATCHES = (2, 4, 8)
# For 16 tokens 4 states do as well as 8; on one core a step costs 2.7 of DiT's (with s4d of 32 states 1.5).
DIGITS = {"size": 8, "channels": 1, "classes": 10, "width": 64, "depth": 4, "state": 4, "time_scale": 1000.0}


def _table() -> family.Presets:
    """Return SSM-S/2 ... SSM-XL/8, of DiT's depths and widths, and one for digits."""
    sizes = {f"SSM-{s}/{p}": {"patch": p, "depth": d, "width": w} for s, (d, w) in SIZES.items() for p in PATCHES}
    return {**sizes, "digits": DIGITS}


@dataclass(frozen=True)
class SSM(family.Family):
    """A denoiser of linear cost without attention: Mamba or S4D over the tokens in both directions, and MLPs.

    The defaults are SSM-S/2 for 32 x 32 x 4 latents. Presets: "SSM-S/2" to "SSM-XL/8", and "digits".

    Attributes:
        size: height and width of x, pixels.
        patch: side of a token's square, pixels.
        channels: of x.
        classes: number of labels, 0 for none; the label table has one more row, for "no class".
        width: channels of a token; 384 (S), 768 (B), 1024 (L), 1152 (XL), as DiT's.
        depth: number of blocks; 12, 12, 24, 28.
        mixer: "mamba", whose step and maps depend on the token, or "s4d", one long convolution, the same for all.
        state: numbers of state per channel, even for S4D; the papers have 16 for Mamba and 64 for S4D.
        expand: inner channels of Mamba over width; with 1 a block has about the parameters of DiT's.
        mlp_ratio: hidden width of the MLP over width.
        order: "rows" reads the picture row by row in every block, "alternate" column by column in every second one.
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
        check_fields(self, mlp_ratio="(0, 1000]")
        family.divisible(self, "size", self.patch, "patch")
        family.divisible(self, "width", 4)
        if self.mixer == "s4d" and self.state % 2:
            raise UserError(f"SSM.state {self.state} must be even for the mixer s4d")

    def build(self) -> SSMNet:
        """Return a fresh network: its output is zero and every block the identity."""
        return SSMNet(self)


class SSMNet(PatchNet):
    """SSM's network; see gen.models.layers.patch.PatchNet. The site "blocks.3.attn" is the state-space mixer."""

    def __init__(self, spec: SSM):
        super().__init__(spec)
        hidden = int(spec.mlp_ratio * spec.width)
        self.blocks = nn.ModuleList(Block(spec.width, 1, hidden) for _ in range(spec.depth))
        self.final_layer = FinalLayer(spec.width, spec.patch**2 * spec.channels)
        self.apply(init.xavier)
        init.adaln_zero(self)
        for i, block in enumerate(self.blocks):  # last: mixers keep their own initialisation
            block.add_module("attn", GridMixer(spec, by_column=spec.order == "alternate" and i % 2 == 1))


class GridMixer(nn.Module):
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
        return self._transpose(self.mixer(self._transpose(h)))

    def _transpose(self, h: Tensor) -> Tensor:
        """Change between the orders by row and by column, if this layer reads by column."""
        if not self.by_column:
            return h
        return h.reshape(len(h), self.side, self.side, -1).transpose(1, 2).flatten(1, 2)

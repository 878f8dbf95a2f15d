"""VideoDiT: a DiT over films whose blocks attend within a frame and along time in turn (factorised space and time).

(Video Diffusion Models, Ho et al. 2022; Latte, Ma et al. 2024, its first variant. Ours: adaLN-Zero in the blocks of
time, which see the frame's number by an embedding of their own, so that a fresh film model is a DiT frame by frame.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gen.config.fields import check_fields
from gen.models.layers import family, init
from gen.models.layers.attention import Attention
from gen.models.layers.block import Block, FinalLayer
from gen.models.layers.embed import waves
from gen.models.layers.patch import PatchNet, unpatchify
from gen.models.layers.rope import Rope

__all__ = ["VideoDiT", "VideoDiTNet"]


@dataclass(frozen=True)
class VideoDiT(family.Family):
    """A diffusion transformer over films [channels, frames, size, size]; `depth` pairs of blocks, of space and of time.

    Preset: "digits", for gen.data.moving_digits.

    Attributes:
        frames: pictures of a film.
        size: height and width of a frame, pixels.
        patch: side of a token's square, pixels; a token is of one frame.
        channels: of x.
        classes: number of labels, 0 for none; the label table has one more row, for "no class".
        width: channels of a token.
        depth: number of pairs of blocks.
        heads: of both attentions.
        mlp_ratio: hidden width of the MLPs over width.
        time_scale: factor on t.
        time_convention: what t = 1 means to the network; "data" passes it 1 - t.
        freq_shift: of the waves of time (gen.models.layers.embed.waves).
    """

    time_range: ClassVar[float] = 1000.0
    presets: ClassVar[family.Presets] = {
        "digits": {"frames": 8, "size": 16, "patch": 4, "channels": 1, "classes": 10, "width": 64, "depth": 3,
                   "heads": 4, "time_scale": 1000.0}
    }  # fmt: skip

    frames: int = 16
    size: int = 32
    patch: int = 2
    channels: int = 4
    classes: int = 0
    width: int = 384
    depth: int = 6
    heads: int = 6
    mlp_ratio: float = 4.0
    time_scale: float = 1.0
    time_convention: Literal["noise", "data"] = "noise"
    freq_shift: int = 0

    def __post_init__(self) -> None:
        family.at_least(self, frames=1, size=1, patch=1, channels=1, classes=0, width=1, depth=1, heads=1)
        check_fields(self, mlp_ratio="(0, 1000]")
        family.divisible(self, "size", self.patch, "patch")
        family.divisible(self, "width", self.heads, "heads")
        family.divisible(self, "width", 4)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """The shape of one x."""
        return (self.channels, self.frames, self.size, self.size)

    def build(self) -> VideoDiTNet:
        """Return a fresh network: its output is zero and every block the identity."""
        return VideoDiTNet(self)


class VideoDiTNet(PatchNet):
    """VideoDiT's network; see gen.models.layers.patch.PatchNet. Tokens [B, T N, width] come frame by frame.

    Blocks of even numbers are of space, those of odd ones of time; but for the latter, names are DiT's.
    """

    spec: VideoDiT

    def __init__(self, spec: VideoDiT):
        super().__init__(spec)
        hidden = int(spec.mlp_ratio * spec.width)
        self.blocks = nn.ModuleList(Block(spec.width, spec.heads, hidden) for _ in range(2 * spec.depth))
        for i, block in enumerate(self.blocks):
            block.add_module("attn", (AlongTime if i % 2 else WithinFrames)(spec.width, spec.heads, spec.frames))
        self.final_layer = FinalLayer(spec.width, spec.patch**2 * spec.channels)
        self.apply(init.xavier)
        init.adaln_zero(self)

    def embed(self, x: Tensor) -> Tensor:
        """Return the tokens of films [B, C, T, H, W], with their positions in the frame, [B, T N, width]."""
        tokens = super().embed(x.transpose(1, 2).flatten(0, 1))  # [B T, N, width]
        return tokens.unflatten(0, (len(x), -1)).flatten(1, 2)

    def head(self, h: Tensor, c: Tensor, size: Sequence[int] = ()) -> Tensor:
        """Return the films [B, C, T, H, W] of the last tokens h [B, T N, width] under c [B, width]."""
        out = self.final_layer(h, c).unflatten(1, (self.spec.frames, -1)).flatten(0, 1)  # [B T, N, numbers]
        return unpatchify(out, self.spec.patch).unflatten(0, (len(h), -1)).transpose(1, 2)


class WithinFrames(Attention):
    """Attention of the tokens of each frame, [B, T N, width] -> [B, T N, width].

    Args:
        width, heads: of it.
        frames: T.
    """

    def __init__(self, width: int, heads: int, frames: int):
        super().__init__(width, heads)
        self.frames = frames

    def forward(self, h: Tensor, rope: Rope | None = None) -> Tensor:
        frames = h.unflatten(1, (self.frames, -1)).flatten(0, 1)  # [B T, N, width]
        return super().forward(frames, rope).unflatten(0, (len(h), -1)).flatten(1, 2)


class AlongTime(Attention):
    """Attention of the tokens at each position of the frames, which get an embedding of their frame's number.

    Args:
        width, heads: of it.
        frames: T.
    """

    order: Tensor

    def __init__(self, width: int, heads: int, frames: int):
        super().__init__(width, heads)
        self.frames = frames
        self.register_buffer("order", waves(torch.arange(frames).float(), width), persistent=False)  # [T, width]

    def forward(self, h: Tensor, rope: Rope | None = None) -> Tensor:
        along = h.unflatten(1, (self.frames, -1)).transpose(1, 2) + self.order  # [B, N, T, width]
        mixed = super().forward(along.flatten(0, 1), rope).unflatten(0, (len(h), -1))
        return mixed.transpose(1, 2).flatten(1, 2)

"""UNet: convolutions from fine to coarse and back, with shortcuts between (ADM, Dhariwal & Nichol 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.diffusion.denoiser import Cond
from gen.diffusion.net import sides
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family
from gen.models.layers.conv import (
    Downsample,
    LevelBlock,
    PixelAttention,
    Resample,
    ResBlock,
    Upsample,
    run_alone,
    run_levels,
    run_res_block,
    zero_module,
)
from gen.models.layers.embed import convert_time, waves

__all__ = ["UNet", "UNetNet"]


def _table() -> family.Presets:
    """Return ADM for ImageNet by resolution, the same for latents of 256 x 256 images, and one for digits."""
    adm: Json = {"channels": 3, "width": 256, "blocks": 2, "learn_sigma": True, "qkv_order": "heads"}
    large = {**adm, "size": 256, "multipliers": (1, 1, 2, 2, 4, 4)}
    return {
        "ADM-64": {**adm, "size": 64, "width": 192, "blocks": 3, "dropout": 0.1, "qkv_order": "qkv"},
        "ADM-128": {**adm, "size": 128, "multipliers": (1, 1, 2, 3, 4), "heads": 4},
        "ADM-256": large,
        "ADM-256-uncond": {**large, "classes": 0},
        "ADM-512": {**adm, "size": 512, "multipliers": (0.5, 1, 1, 2, 2, 4, 4)},
        "latent": {"size": 32, "channels": 4, "width": 192, "blocks": 3},
        "digits": {
            "size": 8,
            "channels": 1,
            "classes": 10,
            "width": 32,
            "multipliers": (1, 1),
            "blocks": 1,
            "attention": (4,),
            "head_width": 16,
            "groups": 8,
            "time_scale": 1000.0,
        },
    }


@dataclass(frozen=True)
class UNet(family.Family):
    """A diffusion U-Net for pixels or latents; the defaults are ADM's for 64 x 64 x 3 but without learned sigma.

    Presets: "ADM-64", "ADM-128", "ADM-256", "ADM-256-uncond" and "ADM-512" as published, "latent" for 32 x 32 x 4
    latents, and "digits".

    Attributes:
        size: height and width of x, pixels: one number for squares, else both.
        channels: of x.
        classes: number of labels, 0 for none; "no class" adds nothing, so it has no row in the label table.
        width: channels that `multipliers` count in; 192 (ADM-64) and 256.
        multipliers: channels of each level over width, the finest first; each level is half as high as the one before.
        blocks: residual blocks per level on the way down; one more on the way up.
        attention: lengths of the shorter side at which every block is followed by attention, pixels; the middle always
            has one.
        heads: of attention, 0 for one per head_width channels.
        head_width: channels of a head if heads is 0.
        qkv_order: layout of the rows of q, k and v (gen.models.layers.conv.PixelAttention); "qkv" in the weights of
            ADM-64, "heads" in all others.
        resampling: between levels, "block" for ADM's residual blocks, "conv" for a convolution, as in improved DDPM,
            "conv_same" for one padded at the right and at the bottom alone, as in DDPM.
        scale_shift: the condition scales and shifts the second norm of a block, as in ADM; False adds it before.
        groups, norm_eps: of the group norms.
        dropout: probability, [0, 1); 0.1 for ADM-64.
        learn_sigma: the last layer has twice the channels; forward returns the first half.
        cond_channels: of a picture cond["image"] that is joined to x, such as a degraded one; 0 for none.
        time_scale: factor on t.
        time_convention: what t = 1 means to the network; "data" passes it 1 - t.
        freq_shift, max_period: of the waves of time (gen.models.layers.embed.waves).
    """

    time_range: ClassVar[float] = 1000.0
    presets: ClassVar[family.Presets] = _table()

    size: int | tuple[int, int] = 64
    channels: int = 3
    classes: int = 1000
    width: int = 192
    multipliers: tuple[float, ...] = (1, 2, 3, 4)
    blocks: int = 3
    attention: tuple[int, ...] = (32, 16, 8)
    heads: int = 0
    head_width: int = 64
    qkv_order: Literal["qkv", "heads"] = "qkv"
    resampling: Literal["block", "conv", "conv_same"] = "block"
    scale_shift: bool = True
    groups: int = 32
    norm_eps: float = 1e-5
    dropout: float = 0.0
    learn_sigma: bool = False
    cond_channels: int = 0
    time_scale: float = 1.0
    time_convention: Literal["noise", "data"] = "noise"
    freq_shift: int = 0
    max_period: float = 10_000.0

    def __post_init__(self) -> None:
        family.at_least(
            self, size=1, channels=1, classes=0, width=2, blocks=1, heads=0, head_width=1, groups=1, cond_channels=0
        )
        check_fields(self, dropout="[0, 1)", max_period="(0, inf)")
        family.one_number_for_squares(self)
        if self.width % 2:
            raise UserError(f"UNet.width {self.width} must be even: half of the waves are cosines")
        halvings = len(self.multipliers) - 1
        if halvings < 0 or any(side % 2**halvings for side in sides(self)):
            raise UserError(f"UNet: size {self.size} cannot be halved once per step of multipliers {self.multipliers}")
        for level, channels in enumerate(self.widths):
            attends = self.attends(level) or level == len(self.widths) - 1
            unit = self.heads or self.head_width
            if channels < 1 or channels % self.groups or (attends and channels % unit):
                raise UserError(
                    f"UNet: level {level} has {channels} channels, not divisible by groups {self.groups}"
                    + (f" and by {'heads' if self.heads else 'head_width'} {unit}" if attends else "")
                )

    def attends(self, level: int) -> bool:
        """Return whether a level attends, by its shorter side."""
        return min(sides(self)) >> level in self.attention

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the finest first."""
        return tuple(round(m * self.width) for m in self.multipliers)

    @property
    def size_step(self) -> int | None:
        """What the sides of an x of another size are multiples of, pixels."""
        return 2 ** (len(self.multipliers) - 1)

    def build(self) -> UNetNet:
        """Return a fresh network: its output is zero and every residual too."""
        return UNetNet(self)


class UNetNet(family.FamilyNet):
    """UNet's network. Names in the state dict are the published ones.

    Sites of a tap. Residuals: "blocks.3", a residual block with its attention, counted from the input to the output,
    and inside it "blocks.3.conv" and "blocks.3.attn"; leaving one out (Skip) leaves the block's shortcut. Whole values:
    "time" (t [B] -> its embedding), "encoder.0" (x -> features), "trunk" with the sites of
    gen.models.layers.conv.run_levels, and "final" (features -> the image with all its channels, learned sigma
    included).
    """

    def __init__(self, spec: UNet):
        super().__init__()
        self.spec, emb = spec, 4 * spec.width
        self.time_embed = nn.Sequential(nn.Linear(spec.width, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label_emb = nn.Embedding(spec.classes, emb) if spec.classes else None
        width = spec.widths[0]
        first = nn.Conv2d(spec.channels + spec.cond_channels, width, 3, padding=1)
        self.input_blocks = nn.ModuleList([nn.Sequential(first)])
        blocks = spec.resampling == "block"
        kept = [width]  # channels of what the way down leaves for the way up
        for level, out in enumerate(spec.widths):
            if level:
                down = self._block(width, width, "down") if blocks else Downsample(width, spec.resampling != "conv")
                self.input_blocks.append(nn.ModuleList([down]))
                kept.append(width)
            for _ in range(spec.blocks):
                self.input_blocks.append(self._stage(width, out, level))
                width = out
                kept.append(width)
        coarsest = len(spec.widths) - 1
        middle = [self._block(width, width) for _ in range(2)]
        self.middle_block = nn.ModuleList([middle[0], self._attention(width), middle[1]])
        self.output_blocks = nn.ModuleList()
        for level in range(coarsest, -1, -1):
            for i in range(spec.blocks + 1):
                stage = self._stage(width + kept.pop(), spec.widths[level], level)
                width = spec.widths[level]
                if level and i == spec.blocks:
                    stage.append(self._block(width, width, "up") if blocks else Upsample(width))
                self.output_blocks.append(stage)
        last = zero_module(nn.Conv2d(width, spec.channels * (2 if spec.learn_sigma else 1), 3, padding=1))
        self.out = nn.Sequential(nn.GroupNorm(spec.groups, width, spec.norm_eps), nn.SiLU(), last)

    def _stage(self, width: int, out: int, level: int) -> nn.ModuleList:
        """Return a residual block, and the attention of its level if there is one."""
        attends = self.spec.attends(level)
        return nn.ModuleList([self._block(width, out), *([self._attention(out)] if attends else [])])

    def _block(self, width: int, out: int, resampling: Resample = "keep") -> ResBlock:
        spec = self.spec
        return ResBlock(
            width, out, 4 * spec.width, spec.groups, spec.dropout, resampling, spec.scale_shift, spec.norm_eps
        )

    def _attention(self, width: int) -> PixelAttention:
        heads = self.spec.heads or width // self.spec.head_width
        return PixelAttention(width, heads, self.spec.groups, self.spec.qkv_order, self.spec.norm_eps)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        family.check(self.spec, x, t, cond, s)
        c = call_site(tap, "time", self.time, t)  # [B, 4 width]
        if self.label_emb is not None:
            y = cond["y"]
            row = embedding(y.clamp(max=self.spec.classes - 1), self.label_emb.weight)  # [B, 4 width]
            c = c + row * (y < self.spec.classes)[:, None]
        h = call_site(tap, "encoder.0", self.input_blocks[0], family.join_image(self.spec, x, cond))
        h = call_site(tap, "trunk", lambda h: self.trunk(h, c, tap), h)
        out = call_site(tap, "final", self.out, h)  # [B, C or 2C, H, W]
        return out[:, : self.spec.channels]  # [B, C, H, W]

    def time(self, t: Tensor) -> Tensor:
        """Return the embedding of times t [B], [B, 4 width]."""
        t = convert_time(t, self.spec.time_scale, self.spec.time_convention)
        wave = waves(t, self.spec.width, self.spec.max_period, self.spec.freq_shift)  # [B, width]
        return self.time_embed(wave.to(next(self.parameters()).dtype))

    def trunk(self, h: Tensor, c: Tensor, tap: Tap | None) -> Tensor:
        """Run down, through the middle and up again on h [B, width, H, W] under the condition c [B, 4 width]."""
        down, up = ([_blocks(stage) for stage in stages] for stages in ([*self.input_blocks][1:], self.output_blocks))
        up_joined = [(blocks, True) for blocks in up]
        return run_levels(
            h, c, tap, down, _blocks(self.middle_block), up_joined, lambda h, kept: torch.cat([h, kept], 1)
        )


def _blocks(stage: nn.Module) -> list[LevelBlock]:
    """Return a stage's blocks: residual ones, each with the attention behind it, and convolutions between levels."""
    parts = list(pairwise([*stage.children(), None]))
    return [
        partial(run_res_block, block, behind if isinstance(behind, PixelAttention) else None)
        if isinstance(block, ResBlock)
        else partial(run_alone, block)
        for block, behind in parts
        if block is not None and not isinstance(block, PixelAttention)
    ]

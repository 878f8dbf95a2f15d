"""SiT-down: SiT as a U-Net of one coarser stage, the network of U-REPA (Tian et al. 2025, arXiv 2503.18414).

The paper states patch, width, heads, the blocks of the three stages, RoPE and SwiGLU, parameters and operations. The
rest follows from its numbers, which the presets meet to their last digit: what lies between the stages is that of the
authors' U-DiT, the widths are equal, and the coarser stage has embeddings of time and class of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from gen.config.fields import check_fields
from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family, init
from gen.models.layers.attention import QKNorm
from gen.models.layers.block import Block, FinalLayer, SplitSwiGLU, run_block
from gen.models.layers.embed import ClassEmbedding, TimeEmbedding
from gen.models.layers.patch import PatchNet
from gen.models.layers.rope import Rope, axial_angles

__all__ = ["SiTDown", "SiTDownNet"]

SIZES = {"B": (5, 5, 768, 12), "L": (9, 14, 1024, 16), "XL": (10, 16, 1152, 16)}  # outer, middle, width, heads


def _table() -> family.Presets:
    """Return SiT-down-B/2 to SiT-down-XL/2, and one for digits."""
    table = {
        f"SiT-down-{size}/2": {"outer": outer, "middle": middle, "width": width, "heads": heads}
        for size, (outer, middle, width, heads) in SIZES.items()
    }
    digits = {
        "size": 8, "channels": 1, "classes": 10, "outer": 1, "middle": 3, "width": 48, "heads": 4,
        "hidden_multiple": 16, "time_scale": 1000.0,
    }  # fmt: skip
    return {**table, "digits": digits}


@dataclass(frozen=True)
class SiTDown(family.Family):
    """A U-Net of transformer blocks, its middle at half the resolution; the defaults are the published B/2.

    Each of the last `outer` blocks reads the output of its counterpart among the first ones. Presets: "SiT-down-B/2",
    "SiT-down-L/2" and "SiT-down-XL/2" for 32 x 32 x 4 latents, and "digits".

    Attributes:
        size: height and width of x, pixels.
        patch: side of a token's square, pixels; 2.
        channels: of x; 4 for latents of Stable Diffusion's autoencoder.
        classes: number of labels, 0 for none; the label tables have one more row, for "no class".
        width: channels of a token, in all stages; 768 (B), 1024 (L), 1152 (XL).
        outer: number of blocks before the middle, and of those after it; 5, 9, 10.
        middle: number of blocks at half the resolution; 5, 14, 16.
        heads: of attention; 12, 16, 16.
        mlp_ratio: the hidden width of the MLP is 2/3 of mlp_ratio * width, rounded up.
        hidden_multiple: of which the hidden width is a multiple; 256.
        qk_norm: see gen.models.layers.attention.
        time_scale: factor on t; 1 for t in [0, 1] as published.
        time_convention: what t = 1 means to the network; "noise" as published.
        null_class: whether there is a label for "no class".
    """

    presets: ClassVar[family.Presets] = _table()

    size: int = 32
    patch: int = 2
    channels: int = 4
    classes: int = 1000
    width: int = 768
    outer: int = 5
    middle: int = 5
    heads: int = 12
    mlp_ratio: float = 4.0
    hidden_multiple: int = 256
    qk_norm: QKNorm = False
    time_scale: float = 1.0
    time_convention: Literal["noise", "data"] = "noise"
    null_class: bool = True

    def __post_init__(self) -> None:
        family.at_least(self, size=1, patch=1, channels=1, width=1, outer=1, middle=1, heads=1, classes=0,
                        hidden_multiple=1)  # fmt: skip
        check_fields(self, mlp_ratio="(0, 1000]")
        family.divisible(self, "size", 2 * self.patch, "2 * patch")
        family.divisible(self, "width", 4 * self.heads, "4 * heads")

    @property
    def hidden(self) -> int:
        """The hidden width of the MLP."""
        return -(-2 * int(self.mlp_ratio * self.width) // (3 * self.hidden_multiple)) * self.hidden_multiple

    def build(self) -> SiTDownNet:
        """Return a fresh network: its output is zero and every block the identity."""
        return SiTDownNet(self)


class SiTDownNet(PatchNet):
    """SiTDown's network; see gen.models.layers.patch.PatchNet for its sites. Those of the middle have T / 4 tokens."""

    spec: SiTDown
    adaln_only = False

    def __init__(self, spec: SiTDown):
        super().__init__(spec)
        width, side, dim = spec.width, spec.size // spec.patch, spec.width // spec.heads
        self.middle_t_embedder = self.time_embedding()
        self.middle_y_embedder = ClassEmbedding(spec.classes, width, spec.null_class) if spec.classes else None
        self.outer_rope, self.middle_rope = (Rope(axial_angles(dim, n), saved=False) for n in (side, side // 2))
        self.blocks = nn.ModuleList(
            Block(width, spec.heads, spec.hidden, spec.qk_norm, mlp=SplitSwiGLU)
            for _ in range(2 * spec.outer + spec.middle)
        )
        self.down = nn.Conv2d(width, width // 4, 3, padding=1, bias=False)
        self.up = nn.Conv2d(width, 4 * width, 3, padding=1, bias=False)
        self.joins = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(spec.outer))
        self.final_layer = FinalLayer(width, spec.patch**2 * spec.channels)
        self.apply(init.xavier)
        init.adaln_zero(self)
        for layer in (self.middle_t_embedder.get_submodule(f"mlp.{i}") for i in (0, 2)):
            nn.init.normal_(layer.get_parameter("weight"), std=0.02)

    def time_embedding(self) -> nn.Module:
        return TimeEmbedding(self.spec.width, scale=self.spec.time_scale, convention=self.spec.time_convention)

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        self.check(x, t, cond, s)
        h, c = self.embed(x), self.conditioning(t, cond, tap)  # [B, T, width], [B, width]
        coarse = self.middle_t_embedder(t)
        if self.middle_y_embedder is not None:
            coarse = coarse + self.middle_y_embedder(family.labels(self.spec, cond, len(t)))
        h = call_site(tap, "trunk", lambda h: self.stages(h, c, coarse, tap), h)
        return call_site(tap, "final", lambda h: self.head(h, c), h)

    def stages(self, h: Tensor, c: Tensor, coarse: Tensor, tap: Tap | None) -> Tensor:
        """Run all blocks on tokens h [B, T, width], the middle ones under `coarse`, the others under c, [B, width]."""
        outer, last = self.spec.outer, len(self.blocks) - self.spec.outer
        kept = list[Tensor]()
        for i, block in enumerate(self.blocks):
            middle = outer <= i < last
            if i == outer:
                h = _tokens(pixel_unshuffle(self.down(_image(h)), 2))  # [B, T / 4, width]
            if i == last:
                h = _tokens(pixel_shuffle(self.up(_image(h)), 2))
            if i >= last:
                h = self.joins[i - last](torch.cat([h, kept.pop()], -1))
            h = run_block(block, h, coarse if middle else c, i, tap, self.middle_rope if middle else self.outer_rope)
            if i < outer:
                kept.append(h)
        return h


def _image(h: Tensor) -> Tensor:
    """Return tokens [B, T, C] of a square as [B, C, side, side]."""
    return h.mT.unflatten(2, (round(h.shape[1] ** 0.5), -1))


def _tokens(image: Tensor) -> Tensor:
    """Return [B, C, side, side] as tokens [B, T, C]."""
    return image.flatten(2).mT

"""PixArt: a DiT that attends to a caption, its norms under one modulation for all blocks (Chen et al. 2023, 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from gen.config.fields import check_fields
from gen.config.spec import Json
from gen.diffusion.denoiser import Cond
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family, init
from gen.models.layers.attention import Attention, QKNorm
from gen.models.layers.block import Mlp, modulate
from gen.models.layers.captioned import CaptionedNet
from gen.models.layers.captions import CaptionEmbedding, CrossAttention, check_text_fields
from gen.models.layers.embed import TimeEmbedding, grid_embedding
from gen.models.layers.patch import unpatchify

__all__ = ["PixArt", "PixArtNet"]

_XL: Json = {"width": 1152, "depth": 28, "heads": 16, "patch": 2, "channels": 4, "classes": 0, "learn_sigma": True}
_T5: Json = {"text_width": 4096, "null_text": "stored"}
PRESETS: family.Presets = {
    "PixArt-XL/2-256": {**_XL, **_T5, "size": 32, "text_length": 120},
    "PixArt-XL/2-512": {**_XL, **_T5, "size": 64, "text_length": 120},
    "PixArt-XL/2-1024": {
        **_XL, **_T5, "size": 128, "text_length": 120, "position_scale": 2.0, "size_condition": True,
    },
    "PixArt-Sigma-XL/2-256": {**_XL, **_T5, "size": 32, "text_length": 300, "position_scale": 0.5},
    "PixArt-Sigma-XL/2-512": {**_XL, **_T5, "size": 64, "text_length": 300},
    "PixArt-Sigma-XL/2-1024": {**_XL, **_T5, "size": 128, "text_length": 300, "position_scale": 2.0},
    "digits": {
        "size": 8, "patch": 2, "channels": 1, "classes": 10, "width": 64, "depth": 4, "heads": 4, "text_width": 16,
        "text_length": 16, "time_scale": 1000.0,
    },
}  # fmt: skip


@dataclass(frozen=True)
class PixArt(family.Family):
    """A diffusion transformer with cross-attention to a caption; the defaults are small, for 32 x 32 x 4 latents.

    The caption is cond["text"] [B, L, text_width], embeddings of a frozen encoder, or cond["text_ids"] [B, L] for a
    text transformer that is trained with the model; with cond["text_mask"] [B, L] either way (gen.models.layers
    .captions). Without them there is no caption. Presets: PixArt-alpha's at 256, 512 and 1024 pixels, PixArt-Sigma's,
    and "digits".

    Attributes:
        size: height and width of x, pixels: one number for squares, else both.
        patch: side of a token's square, pixels.
        channels: of x; 4 for latents of Stable Diffusion's autoencoder.
        classes: number of labels, 0 for none, as published; the embedding of a label is added to that of time.
        width: channels of a token; 1152 (XL).
        depth: number of blocks; 28.
        heads: of attention; 16.
        mlp_ratio: hidden width of the MLP over width.
        learn_sigma: the final layer has twice the channels, as the published weights do; forward returns the first
            half.
        cond_channels: of a picture cond["image"] that is joined to x, such as a degraded one; 0 for none.
        text_width: channels of a caption's embedding; 4096 for T5-XXL.
        text_length: most tokens of a caption; 120 (alpha), 300 (Sigma).
        text_vocab: ids of the text transformer that is trained with the model; 0 for given embeddings.
        text_depth: blocks of that transformer, text_width wide.
        null_text: the tokens of no caption: one "learned" token, or the "stored" embedding of the empty caption.
        position_scale: positions are divided by it; 2 where 1024 pixels were fine-tuned from 512.
        size_condition: the height, width and aspect ratio of the picture are conditions too, cond["resolution"] [B, 2]
            and cond["aspect_ratio"] [B, 1], by default 8 times x's sides and 1: PixArt-alpha at 1024.
        time_scale: factor on t; 1000 suits t in [0, 1].
        time_convention: what t = 1 means to the network.
        qk_norm: see gen.models.layers.attention.
        null_class: whether there is a label for "no class".
    """

    time_range: ClassVar[float] = 1000.0
    presets: ClassVar[family.Presets] = PRESETS

    size: int | tuple[int, int] = 32
    patch: int = 2
    channels: int = 4
    classes: int = 0
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    learn_sigma: bool = False
    cond_channels: int = 0
    text_width: int = 768
    text_length: int = 120
    text_vocab: int = 0
    text_depth: int = 0
    null_text: Literal["learned", "stored"] = "learned"
    position_scale: float = 1.0
    size_condition: bool = False
    time_scale: float = 1.0
    time_convention: Literal["noise", "data"] = "noise"
    qk_norm: QKNorm = False
    null_class: bool = True

    def __post_init__(self) -> None:
        family.at_least(self, size=1, patch=1, channels=1, width=1, depth=1, heads=1, classes=0, cond_channels=0)
        check_fields(self, mlp_ratio="(0, 1000]", position_scale="(0, inf)")
        check_text_fields(self)
        family.one_number_for_squares(self)
        family.divisible(self, "size", self.patch, "patch")
        family.divisible(self, "width", self.heads, "heads")
        family.divisible(self, "width", 12 if self.size_condition else 4)

    @property
    def size_step(self) -> int | None:
        """What the sides of an x of another size are multiples of, pixels."""
        return self.patch

    def build(self) -> PixArtNet:
        """Return a fresh network: its output is zero."""
        return PixArtNet(self)


class Conditions(NamedTuple):
    """All that the blocks take of time and condition.

    Attributes:
        time: embedding of time, class and size, [B, width].
        modulation: shifts, scales and gates that all blocks share, [B, 6, width].
        text: projected tokens of the caption, [B, L, width].
        mask: bool [B, L].
    """

    time: Tensor
    modulation: Tensor
    text: Tensor
    mask: Tensor


class PixArtNet(CaptionedNet):
    """PixArt's network; see gen.models.layers.patch.PatchNet for its sites, and "blocks.3.cross" besides."""

    spec: PixArt
    adaln_only = False

    def __init__(self, spec: PixArt):
        super().__init__(spec)
        width, out = spec.width, spec.channels * (2 if spec.learn_sigma else 1)
        self.captions = CaptionEmbedding(spec)
        self.text_proj = nn.Sequential(nn.Linear(spec.text_width, width), nn.GELU("tanh"), nn.Linear(width, width))
        self.t_block = nn.Linear(width, 6 * width)
        self.size_embedder = self.ratio_embedder = None
        if spec.size_condition:
            self.size_embedder, self.ratio_embedder = (TimeEmbedding(width // 3) for _ in range(2))
        self.blocks = nn.ModuleList(
            CrossBlock(width, spec.heads, int(spec.mlp_ratio * width), spec.qk_norm) for _ in range(spec.depth)
        )
        self.final_layer = nn.Linear(width, spec.patch**2 * out)
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.final_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self._init_weights()

    def _init_weights(self) -> None:
        """As published: Xavier, and zero where a block's cross-attention and the network end."""
        self.apply(init.xavier)
        for name, weight in self.named_parameters():
            if name.startswith(("t_embedder.mlp", "t_block", "text_proj")) and name.endswith("weight"):
                nn.init.normal_(weight, std=0.02)
        init.zeros(self.final_layer, *(block.get_submodule("cross.proj") for block in self.blocks))

    def position_table(self, grid: Sequence[int]) -> Tensor:
        """Return positions [1, T, width] spread over the range of the spec's own grid."""
        own = self.own_grid
        rows, columns = (a / b / self.spec.position_scale for a, b in zip(own, grid, strict=True))
        return grid_embedding(self.spec.width, *grid, steps=(rows, columns))[None]

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        self.check(x, t, cond, s)
        h = self.embed(family.join_image(self.spec, x, cond))  # [B, T, width]
        c = self.block_conditions(t, cond, x, tap)
        h = call_site(tap, "trunk", lambda h: self.run_blocks(h, c, tap), h)
        out = call_site(tap, "final", lambda h: self._image(h, c, x.shape[2:]), h)  # [B, C or 2C, H, W]
        return out[:, : x.shape[1]]

    def block_conditions(self, t: Tensor, cond: Cond, x: Tensor, tap: Tap | None = None) -> Conditions:
        """Return what the blocks take of t [B] and cond, for a batch x."""
        time = self.conditioning(t, cond, tap)
        if self.size_embedder is not None and self.ratio_embedder is not None:
            side = x.new_tensor([8.0 * n for n in x.shape[2:]], dtype=torch.float32)
            pixels = cond.get("resolution", side.expand(len(x), 2))
            ratio = cond.get("aspect_ratio", torch.ones_like(pixels[:, :1]))
            parts = (self.size_embedder(pixels.flatten()).reshape(len(x), -1), self.ratio_embedder(ratio.flatten()))
            time = time + torch.cat(parts, 1)
        text, mask = self.captions(cond, len(x))
        return Conditions(time, self.t_block(silu(time)).unflatten(1, (6, -1)), self.text_proj(text), mask)

    def _image(self, h: Tensor, c: Conditions, size: Sequence[int]) -> Tensor:
        shift, scale = (self.final_table + c.time[:, None]).unbind(1)  # [B, width] each
        h = self.final_layer(modulate(self.final_norm(h), shift, scale))
        return unpatchify(h, self.spec.patch, size[0] // self.spec.patch)


class CrossBlock(nn.Module):
    """PixArt's block: self-attention, cross-attention without norm and gate, MLP; modulated by a table of its own.

    Attributes:
        gradient_checkpointing: see gen.models.layers.recompute.
    """

    gradient_checkpointing = False

    def __init__(self, width: int, heads: int, hidden: int, qk_norm: QKNorm):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads, qk_norm)
        self.cross = CrossAttention(width, heads)
        self.mlp = Mlp(width, hidden)
        self.table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def residuals(
        self, h: Tensor, c: Conditions, site: str, tap: Tap | None = None, rope: None = None
    ) -> tuple[Tensor, Tensor]:
        """Return what both attentions add to h [B, T, width], and then what the MLP adds; see `run_block`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.table + c.modulation)[:, :, None].unbind(1)

        def attn(h: Tensor) -> Tensor:
            h = modulate(self.norm(h), shift1, scale1)
            return gate1 * call_site(tap, f"{site}.attn.raw", self.attn, h)

        def mlp(h: Tensor) -> Tensor:
            h = modulate(self.norm(h), shift2, scale2)
            return gate2 * call_site(tap, f"{site}.mlp.raw", self.mlp, h)

        first = call_site(tap, f"{site}.attn", attn, h)
        first = first + call_site(tap, f"{site}.cross", lambda h: self.cross(h, c.text, c.mask), h + first)
        return first, call_site(tap, f"{site}.mlp", mlp, h + first)

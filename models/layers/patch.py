"""Denoisers shaped like DiT: an image as patches, patches as tokens, blocks under one condition, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from gen.diffusion.denoiser import Cond
from gen.diffusion.net import sides
from gen.diffusion.tap import Tap, call_site
from gen.models.layers import family
from gen.models.layers.block import run_block
from gen.models.layers.embed import ClassEmbedding, TimeEmbedding, grid_embedding
from gen.models.layers.rope import Rope

__all__ = ["MODULATION", "PatchNet", "unpatchify"]

MODULATION = "modulation"  # a key of cond: see PatchNet.conditioning


def unpatchify(tokens: Tensor, patch: int, rows: int | None = None) -> Tensor:
    """Return the image [B, C, H, W] of its tokens.

    Args:
        tokens: [B, T, patch * patch * C], row by row, channel fastest.
        patch: side of a token's square, pixels.
        rows: of tokens; None for a square.
    """
    rows = round(tokens.shape[1] ** 0.5) if rows is None else rows
    image = tokens.reshape(len(tokens), rows, tokens.shape[1] // rows, patch, patch, -1)  # [B, row, column, y, x, C]
    return image.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class PatchNet(family.FamilyNet):
    """Base of denoisers shaped like DiT; a subclass adds `blocks` and `final_layer`.

    Sites of a tap (gen.diffusion.tap). Residuals, which Skip may leave out: "blocks.3", all that block 3 adds, and
    inside it "blocks.3.attn" and "blocks.3.mlp" (see gen.models.layers.block.Block). Whole values, which a tap may
    replace but Skip must not meet: "time" (t [B] -> its embedding [B, width]), "trunk" (tokens before the first block
    -> after the last), inside it "hidden.3" (tokens before -> after block 3), and "final" (tokens -> the image with all
    its channels, a learned sigma included).

    Attributes:
        adaln_only: the blocks take nothing of the condition but their adaLN modulations, so that an engine may compute
            all of them in one product, in advance.
    """

    adaln_only = True
    blocks: nn.ModuleList
    final_layer: nn.Module

    def __init__(self, spec: Any):
        super().__init__()
        self.spec = spec
        channels = spec.channels + getattr(spec, "cond_channels", 0)
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, spec.width, spec.patch, spec.patch)})
        self.add_positions()
        self.t_embedder = self.time_embedding()
        null = getattr(spec, "null_class", True)
        self.y_embedder = ClassEmbedding(spec.classes, spec.width, null) if spec.classes else None

    def add_positions(self) -> None:
        """Add the modules that encode positions; DiT's fixed table."""
        table = grid_embedding(self.spec.width, *(side // self.spec.patch for side in sides(self.spec)))
        self.pos_embed = nn.Parameter(table[None], requires_grad=False)

    def time_embedding(self) -> nn.Module:
        """Return the embedding of time, [B] -> [B, width]."""
        spec = self.spec
        shift, scale = spec.freq_shift, spec.time_scale
        return TimeEmbedding(spec.width, freq_shift=shift, scale=scale, convention=spec.time_convention)

    @property
    def rope(self) -> Rope | None:
        """The rotary table of all blocks, or None."""
        return None

    def forward(self, x: Tensor, t: Tensor, cond: Cond, *, s: Tensor | None = None, tap: Tap | None = None) -> Tensor:
        self.check(x, t, cond, s)
        h = self.embed(family.join_image(self.spec, x, cond))  # [B, T, width]
        c = self.conditioning(t, cond, tap)  # [B, width]
        h = call_site(tap, "trunk", lambda h: self.trunk(h, c, tap), h)  # [B, T, width]
        out = call_site(tap, "final", lambda h: self.head(h, c, x.shape[2:]), h)  # [B, C or 2C, H, W]
        return out[:, : x.shape[1]]  # [B, C, H, W]

    def check(self, x: Tensor, t: Tensor, cond: Cond, s: Tensor | None) -> None:
        """Raise UserError unless the arguments fit."""
        family.check(self.spec, x, t, cond, s)

    def embed(self, x: Tensor) -> Tensor:
        """Return the tokens of an image [B, C, H, W], x and what is joined to it, with positions, [B, T, width]."""
        # The first operand decides the layout of the sum, and the positions are contiguous.
        return self.positions(x.shape[2:]) + self.x_embedder["proj"](x).flatten(2).mT

    def positions(self, size: Sequence[int]) -> Tensor:
        """Return the embedding of positions [1, T, width] of an image of a height and a width.

        On another grid than the spec's, positions are spread over the spec's range (PixArt-alpha, Chen et al. 2023).
        """
        own, grid = ([side // self.spec.patch for side in pair] for pair in (sides(self.spec), size))
        if grid == own:
            return self.pos_embed
        steps = (own[0] / grid[0], own[1] / grid[1])
        table = grid_embedding(self.spec.width, grid[0], grid[1], steps=steps, device=self.pos_embed.device)
        return table[None].to(self.pos_embed.dtype)

    def conditioning(self, t: Tensor, cond: Cond, tap: Tap | None = None) -> Tensor:
        """Return the embeddings of t [B] and of the class added, [B, width]: the input of all adaLN modules.

        If cond has "modulation" [B, ...], the precomputed output of all those modules (gen.models.layers.modulations),
        that is returned instead.
        """
        if MODULATION in cond:
            return cond[MODULATION]
        c = call_site(tap, "time", self.t_embedder, t)
        return c if self.y_embedder is None else c + self.y_embedder(family.labels(self.spec, cond, len(t)))

    def trunk(self, h: Tensor, c: Tensor, tap: Tap | None) -> Tensor:
        """Run all blocks on tokens h [B, T, width] under the condition c [B, width]."""
        for i, block in enumerate(self.blocks):
            h = run_block(block, h, c, i, tap, self.rope)  # [B, T, width]
        return h

    def head(self, h: Tensor, c: Tensor, size: Sequence[int] = ()) -> Tensor:
        """Return the image [B, C or 2C, H, W] of the last tokens h [B, T, width] under c [B, width].

        size is its height and width, by default the spec's.
        """
        return unpatchify(self.final_layer(h, c), self.spec.patch, (size or sides(self.spec))[0] // self.spec.patch)

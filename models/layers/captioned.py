"""Networks of patches that read captions: the conditions, checks and positions that they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from gen.diffusion.denoiser import Cond
from gen.diffusion.net import sides
from gen.diffusion.tap import Tap
from gen.models.layers.block import run_block
from gen.models.layers.captions import CaptionEmbedding, check_captions
from gen.models.layers.embed import TimeEmbedding
from gen.models.layers.patch import PatchNet

__all__ = ["CaptionedNet"]


class CaptionedNet(PatchNet):
    """A PatchNet with captions: see gen.models.layers.captions for its keys of cond."""

    captions: CaptionEmbedding
    blocks: nn.ModuleList

    @property
    def conditions(self) -> tuple[str, ...]:
        """Keys of cond besides "y" that are read, and are zeros where there is none."""
        return (*super().conditions, "text_ids" if self.spec.text_vocab else "text", "text_mask")

    def store_null_text(self, text: Tensor, mask: Tensor, pooled: Tensor | None = None) -> None:
        """Keep the embedding of the empty caption, see `CaptionEmbedding.store_null`."""
        if not self.captions.learned:
            self.captions.store_null(text, mask, pooled)

    def null(self, cond: Cond) -> Cond:
        """Return cond without label and caption; UserError where the embedding of no caption is missing."""
        if "text_mask" in cond:
            self.captions.check_null()
        return super().null(cond)

    def time_embedding(self) -> nn.Module:
        return TimeEmbedding(self.spec.width, scale=self.spec.time_scale, convention=self.spec.time_convention)

    def check(self, x: Tensor, t: Tensor, cond: Cond, s: Tensor | None) -> None:
        super().check(x, t, cond, s)
        check_captions(self.spec, cond, len(x))

    @property
    def own_grid(self) -> list[int]:
        """Tokens along height and width of the size that the network was made for."""
        return [side // self.spec.patch for side in sides(self.spec)]

    @abstractmethod
    def position_table(self, grid: Sequence[int]) -> Tensor:
        """Return positions [1, T, width] of a grid of tokens."""

    def add_positions(self) -> None:
        self.pos_embed = nn.Parameter(self.position_table(self.own_grid), False)

    def positions(self, size: Sequence[int]) -> Tensor:
        grid = [side // self.spec.patch for side in size]
        return self.pos_embed if grid == self.own_grid else self.position_table(grid).to(self.pos_embed)

    def run_blocks(self, h: Tensor, c: object, tap: Tap | None) -> Tensor:
        """Return h [B, T, width] after all blocks, which take c as their conditions."""
        for i, block in enumerate(self.blocks):
            h = run_block(block, h, c, i, tap)
        return h

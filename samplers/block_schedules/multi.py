"""Multi: a next block opens before the last one is full."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.text.contracts import BlockSchedule, Window, positions_between

__all__ = ["Multi"]


@dataclass(frozen=True)
class Multi(BlockSchedule):
    """Several open blocks; the next one opens once enough of the last open one is committed (d3LLM).

    The window reaches from the first open block to the last (Qian et al. 2026, arXiv 2601.07568). add 1 or most 1 is
    one block after another. Blocks lie as those of `semi_ar`.

    Attributes:
        length: tokens of a block.
        add: share of a block that is committed when the next one opens.
        most: open blocks that still have masks, at most.
    """

    length: int = 32
    add: float = 0.5
    most: int = 4

    def __post_init__(self) -> None:
        check_fields(self, length="[1, inf)", add="[0, 1]", most="[1, inf)")

    def window(self, masked: Tensor, prompt_end: Tensor, text_end: Tensor, block_size: int | None) -> Window:
        length, anchor = (self.length, prompt_end) if block_size is None else (block_size, torch.zeros_like(prompt_end))
        positions = torch.arange(masked.shape[1], device=masked.device)
        inside = positions_between(masked.shape[1], prompt_end, text_end)
        number = torch.where(inside, (positions - anchor[:, None]).clamp(min=0) // length, 0)
        blocks = masked.shape[1] // length + 1
        zeros = torch.zeros(len(masked), blocks, dtype=torch.int64, device=masked.device)
        size, masks = (zeros.scatter_add(1, number, where.long()) for where in (inside, masked & inside))
        full, enough = masks == 0, size - masks >= self.add * size
        before = torch.nn.functional.pad((~full).long().cumsum(1)[:, :-1], (1, 0))  # unfinished ones before each
        opens = torch.nn.functional.pad(enough.long().cumprod(1)[:, :-1], (1, 0), value=1) > 0
        open_ = opens & (before < self.most) & ~full
        index = torch.arange(blocks, device=masked.device)
        final = (text_end - 1 - anchor) // length
        first = torch.where(open_, index, blocks).amin(1)
        first, last = torch.minimum(first, final), torch.where(open_.any(1), (index * open_).amax(1), final)
        block_start, stop = anchor + first * length, torch.minimum(anchor + (last + 1) * length, text_end)
        return Window(torch.maximum(block_start, prompt_end), stop, block_start, stop)

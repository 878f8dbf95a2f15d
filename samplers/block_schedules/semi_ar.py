"""Semi-autoregressive: one block after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.text.contracts import BlockSchedule, Window

__all__ = ["SemiAR"]


@dataclass(frozen=True)
class SemiAR(BlockSchedule):
    """The first block that has a mask (LLaDA, Fast-dLLM); the last block may be shorter.

    Attributes:
        length: tokens of a block, counted from the end of the prompt; blocks of a block-causal predictor are its own,
            wherever the prompt ends.
        sub: only so many tokens of a block at a time (Fast-dLLM v2 takes 8 of 32); None for the block.
    """

    length: int = 32
    sub: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, length="[1, inf)", sub="[1, inf)")

    def window(self, masked: Tensor, prompt_end: Tensor, text_end: Tensor, block_size: int | None) -> Window:
        first = torch.maximum(masked.to(torch.uint8).argmax(1), prompt_end)  # the first mask; none: the first block
        length, index = (self.length, first - prompt_end) if block_size is None else (block_size, first)
        block_start = first - index % length
        block_stop = torch.minimum(block_start + length, text_end)
        start, stop = torch.maximum(block_start, prompt_end), block_stop
        if self.sub is not None:
            inner = first - (first - block_start) % self.sub
            start, stop = torch.maximum(inner, prompt_end), torch.minimum(inner + self.sub, block_stop)
        return Window(start, stop, block_start, block_stop)

    def width(self, length: int, block_size: int | None) -> int:
        block = self.length if block_size is None else block_size
        return min(length, block, block if self.sub is None else self.sub)

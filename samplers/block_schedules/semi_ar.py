"""Semi-autoregressive: one block after another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.text.contracts import Window

__all__ = ["SemiAR"]


@dataclass(frozen=True)
class SemiAR:
    """The first block that has a mask (LLaDA, Fast-dLLM). The last block may be shorter.

    Blocks of `length` tokens begin at the end of the prompt; those of a block-causal predictor are its own, wherever
    the prompt ends. sub: only so many tokens of a block at a time (Fast-dLLM v2 takes 8 of 32).
    """

    length: int = 32
    sub: int | None = None

    def __post_init__(self) -> None:
        if self.length < 1 or (self.sub is not None and self.sub < 1):
            raise UserError(f"SemiAR: length = {self.length}, sub = {self.sub}; both must be at least 1")

    def window(self, masked: Tensor, prompt_end: Tensor, text_end: Tensor, block: int | None) -> Window:
        first = masked.to(torch.uint8).argmax(1)  # the first masked place; 0 where there is none
        first = torch.where(masked.any(1), first, text_end - 1)
        length, anchor = (self.length, prompt_end) if block is None else (block, torch.zeros_like(prompt_end))
        begin = anchor + (first - anchor) // length * length
        until = torch.minimum(begin + length, text_end)
        lo, hi = torch.maximum(begin, prompt_end), until
        if self.sub is not None:
            inner = begin + (first - begin) // self.sub * self.sub
            lo, hi = torch.maximum(inner, prompt_end), torch.minimum(inner + self.sub, until)
        return Window(lo, hi, begin.clamp(min=0), until)

    def width(self, longest: int, block: int | None) -> int:
        length = self.length if block is None else block
        return min(longest, length if self.sub is None else min(self.sub, length))

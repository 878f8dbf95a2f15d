"""Whole: all of the text at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.text.contracts import Window

__all__ = ["Whole"]


@dataclass(frozen=True)
class Whole:
    """One window, the whole text: any masked place may be committed at any step (MDLM, Dream; LLaDA's base models)."""

    def window(self, masked: Tensor, prompt_end: Tensor, text_end: Tensor, block: int | None) -> Window:
        begin = prompt_end if block is None else prompt_end // block * block
        return Window(prompt_end, torch.maximum(text_end, prompt_end + 1), begin, text_end)

    def width(self, longest: int, block: int | None) -> int:
        return longest

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

    def window(self, masked: Tensor, start: Tensor, end: Tensor, block: int | None) -> Window:
        begin = start if block is None else start // block * block
        return Window(start, torch.maximum(end, start + 1), begin, end)

    def width(self, longest: int, block: int | None) -> int:
        return longest

"""Whole: all of the text at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.text.contracts import BlockSchedule, Window

__all__ = ["Whole"]


@dataclass(frozen=True)
class Whole(BlockSchedule):
    """One window, the whole text: any mask may be committed at any step (MDLM, Dream; LLaDA's base models)."""

    def window(self, masked: Tensor, prompt_end: Tensor, text_end: Tensor, block_size: int | None) -> Window:
        block_start = prompt_end if block_size is None else prompt_end // block_size * block_size
        return Window(prompt_end, torch.maximum(text_end, prompt_end + 1), block_start, text_end)

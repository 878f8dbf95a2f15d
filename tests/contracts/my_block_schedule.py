"""A block schedule of one's own: all that is masked, from the first mask to the last."""

from dataclasses import dataclass

import torch

from gen.text.contracts import BlockSchedule, Window


@dataclass(frozen=True)
class MyBlockSchedule(BlockSchedule):
    """One window from the first mask to the last."""

    def window(self, masked, prompt_end, text_end, block_size):
        positions = torch.arange(masked.shape[1])
        stop = torch.where(masked, positions + 1, 0).amax(1)
        start = torch.where(masked, positions, masked.shape[1]).amin(1)
        none = ~masked.any(1)
        start, stop = torch.where(none, prompt_end, start), torch.where(none, text_end, stop)
        return Window(start, stop, prompt_end, text_end)

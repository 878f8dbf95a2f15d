"""The contract of a block schedule: where in a text one may commit at a step."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["BlockSchedule", "Window", "positions_between"]


def positions_between(n: int, first: Tensor, last: Tensor) -> Tensor:
    """Return the positions p of n with first <= p < last as a boolean mask [B, n].

    Args:
        n: positions of a canvas.
        first, last: bounds of each row, int64 [B].
    """
    positions = torch.arange(n, device=first.device)
    return (positions >= first[:, None]) & (positions < last[:, None])


@dataclass(frozen=True, eq=False)
class Window:
    """Positions start <= p < stop where each text may be committed now, all int64 [B].

    Attributes:
        start, stop: bounds of the window.
        block_start, block_stop: bounds of the block that the window is, or is a part of.
    """

    start: Tensor
    stop: Tensor
    block_start: Tensor
    block_stop: Tensor


@runtime_checkable
class BlockSchedule(Protocol):
    """A rule that moves the window through a text.

    Must hold: `window` is a pure function, and a text's window depends on that text's row alone.
    """

    @abstractmethod
    def window(self, masked: Tensor, prompt_end: Tensor, text_end: Tensor, block_size: int | None) -> Window:
        """Return the window of each text; a text that has a mask has one in its window.

        Args:
            masked: masks of the generated part, bool [B, N].
            prompt_end: first generated position, int64 [B].
            text_end: end of the text, int64 [B]; fixed text may lie before it, between masks and behind them.
            block_size: that of a block-causal predictor, whose blocks count from position 0; None for others.

        Returns:
            A window with prompt_end <= start < stop <= text_end.
        """
        ...

    def width(self, length: int, block_size: int | None) -> int:
        """Return the largest width that a window can have, known without a look at the masks; `length` by default.

        Args:
            length: positions from the first generated one to the last, in the longest text.
            block_size: as in `window`.
        """
        return length

"""Gaps: masks in a prompt that a model fills, with fixed text before and after them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields

__all__ = ["DROPPED", "FIXED", "Gap", "Layout", "count_before", "end_gaps", "holds_gap", "text_positions"]

FIXED, DROPPED = -1, -2  # instead of a gap's first position


@dataclass(frozen=True)
class Gap:
    """Masks in a prompt: `Gap(32)`, or `Gap(max=32)`.

    Attributes:
        length: the gap is so many tokens of text; none of them ends it.
        max: the gap is so many tokens at most: the model's end-of-text token ends it, and what would follow in the gap
            is none of the text.
    """

    length: int | None = None
    max: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, length="[1, inf)", max="[1, inf)")
        if (self.length is None) == (self.max is None):
            raise UserError(f"{self}: give one of length and max: Gap(32) or Gap(max=32)")

    @property
    def size(self) -> int:
        """Masks at the start."""
        return self.length or self.max or 0


@dataclass(frozen=True, eq=False)
class Layout:
    """A canvas before it is decoded.

    Attributes:
        tokens: ids, masks in the gaps, int64 [n].
        gap_start: first position of the gap that a position lies in, FIXED outside of gaps, int64 [n].
        exact: positions of gaps whose tokens are all text, bool [n].
        start, stop: first position of the first gap, and the one after the last gap.
    """

    tokens: Tensor
    gap_start: Tensor
    exact: Tensor
    start: int
    stop: int

    @classmethod
    def of(cls, prompt: Sequence[int | Gap] | Tensor, length: int | None, mask: int) -> Layout:
        """Return the canvas of a prompt; TypeError for what are neither ids nor gaps.

        Args:
            prompt: ids and gaps in the order of the text.
            length: tokens of a last gap, at most; None for prompts that have gaps.
            mask: id of the mask token.
        """
        parts = [*prompt, *(() if length is None else (Gap(max=length),))]
        tokens, gap_start, exact = list[int](), list[int](), list[bool]()
        for part in parts:
            size, first = (part.size, len(tokens)) if isinstance(part, Gap) else (1, FIXED)
            tokens += [mask if isinstance(part, Gap) else operator.index(part)] * size
            gap_start += [first] * size
            exact += [isinstance(part, Gap) and part.length is not None] * size
        inside = [i for i, first in enumerate(gap_start) if first != FIXED]
        columns = torch.tensor(tokens), torch.tensor(gap_start), torch.tensor(exact)
        return cls(*columns, inside[0], inside[-1] + 1)

    def check_attention(self, block_size: int | None, row: int) -> None:
        """Raise UserError if a gap lies in an earlier block than fixed text after it, which it would not see.

        Args:
            block_size: that of a block-causal predictor; None for others.
            row: index of the prompt, for the message.
        """
        fixed = (self.gap_start == FIXED).nonzero()[:, 0]
        last = int(fixed[-1]) if len(fixed) else -1
        if block_size is not None and last > self.start and last // block_size > self.start // block_size:
            raise UserError(
                f"prompt {row}: text at token {last} follows a gap at token {self.start}, and this model, block-causal "
                f"in blocks of {block_size}, sees no later block: take a model in which every position sees all"
            )


def holds_gap(prompt: Any) -> bool:
    """Return whether a prompt is a list with gaps in it.

    Args:
        prompt: anything.
    """
    return isinstance(prompt, (list, tuple)) and any(isinstance(part, Gap) for part in prompt)


def count_before(where: Tensor, gap_start: Tensor) -> Tensor:
    """Return how many of some positions lie before each position in its gap, int64 [B, N]; arbitrary outside of gaps.

    Args:
        where: the counted positions, bool [B, N].
        gap_start: see Layout; [B, N].
    """
    before = where.long().cumsum(1) - where.long()
    return before - before.gather(1, gap_start.clamp(min=0))


def end_gaps(ends: Tensor, gap_start: Tensor, text_end: Tensor) -> tuple[Tensor, Tensor]:
    """Drop what follows the end of a gap: a gap at the end of a text is cut, the rest of another is no longer text.

    Args:
        ends: last positions of gaps, bool [B, N]; of several in a gap the first counts.
        gap_start: see Layout; [B, N].
        text_end: ends of the texts, int64 [B].

    Returns:
        The new gap_start, DROPPED where fixed text or another gap follows, and the new text_end.
    """
    inside = gap_start >= 0
    after = inside & (count_before(ends & inside, gap_start) > 0)
    cut = after & (gap_start == gap_start.gather(1, text_end[:, None] - 1))
    positions = torch.arange(ends.shape[1], device=ends.device)
    text_end = torch.minimum(text_end, torch.where(cut, positions, ends.shape[1]).amin(1))
    return torch.where(cut, FIXED, torch.where(after, DROPPED, gap_start)), text_end


def text_positions(ids: Sequence[int], gap_start: Sequence[int], eos_token_ids: Sequence[int]) -> list[int]:
    """Return the indices that are text: fixed tokens, and those of each gap before its first end-of-text token.

    Args:
        ids: tokens, of any part of a canvas.
        gap_start: see Layout, of the same positions.
        eos_token_ids: ids that end a text.
    """
    bounds = [0, *(i for i in range(1, len(ids)) if gap_start[i] != gap_start[i - 1]), len(ids)]
    kept = list[int]()
    for first, last in pairwise(bounds):
        if first < last and gap_start[first] != DROPPED:
            within = gap_start[first] != FIXED
            stop = next((i for i in range(first, last) if within and ids[i] in eos_token_ids), last)
            kept += range(first, stop)
    return kept

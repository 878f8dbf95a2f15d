"""State of a decoding loop: one row per text that is not finished; rows are taken out and joined.

Three groups of tensors: canvas, schedule and bookkeeping. No two tensors share storage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from gen.text.contracts import RowState, Window
from gen.text.gaps import DROPPED, FIXED, Layout, end_gaps

__all__ = ["Bookkeeping", "Canvas", "Schedule", "join_rows", "join_states", "take_rows"]

T = TypeVar("T")


@dataclass(eq=False)
class Canvas:
    """Tokens of R texts on N positions, and what is known of each position.

    Each has one column more, part of no text: what is not to be written goes there.

    Attributes:
        tokens: ids, int64 [R, N + 1].
        gap_start, exact: see gen.text.gaps.Layout; [R, N + 1].
        prompt_end: first generated position, int64 [R].
        text_end: end of the text, int64 [R].
        commit_step, confidence: see gen.text.decoding.Decoded; [R, N + 1].
    """

    tokens: Tensor
    gap_start: Tensor
    exact: Tensor
    prompt_end: Tensor
    text_end: Tensor
    commit_step: Tensor
    confidence: Tensor

    @classmethod
    def begin(cls, layouts: Sequence[Layout], mask: int, device: torch.device) -> Canvas:
        ends = [len(layout.tokens) for layout in layouts]
        shape = len(layouts), max(ends) + 1
        tokens = torch.full(shape, mask)
        gap_start, exact = torch.full(shape, FIXED), torch.zeros(shape, dtype=torch.bool)
        for i, layout in enumerate(layouts):
            for canvas, row in ((tokens, layout.tokens), (gap_start, layout.gap_start), (exact, layout.exact)):
                canvas[i, : ends[i]] = row
        starts = torch.tensor([layout.start for layout in layouts])
        return cls(
            tokens=tokens.to(device),
            gap_start=gap_start.to(device),
            exact=exact.to(device),
            prompt_end=starts.to(device),
            text_end=torch.tensor(ends, device=device),
            commit_step=torch.full(shape, -1, device=device),
            confidence=torch.zeros(shape, device=device),
        )

    @property
    def width(self) -> int:
        """The number of positions, N."""
        return self.tokens.shape[1] - 1

    def resized(self, n: int, mask: int) -> Canvas:
        """Return the same on n positions, of which no text may need more."""
        more = n - self.width
        fill = {"tokens": mask, "gap_start": FIXED, "exact": False, "commit_step": -1, "confidence": 0.0}
        columns = {k: pad(getattr(self, k)[:, :-1], (0, more + 1), value=v) for k, v in fill.items()}
        return dataclasses.replace(self, **columns)

    def masks(self, mask: int) -> Tensor:
        """Return the masks of what is generated, bool [R, N + 1]."""
        return (self.tokens == mask) & (self.gap_start >= 0)

    def write(self, positions: Tensor, where: Tensor, tokens: Tensor, step: Tensor, confidence: Tensor) -> None:
        """Write tokens [R, W] at some of the positions; of positions that repeat at the end only the first is one."""
        slots = torch.where(where, positions, self.width)
        self.tokens = self.tokens.scatter(1, slots, tokens)  # a new tensor: the steps before hold the old one
        self.commit_step.scatter_(1, slots, step)
        self.confidence.scatter_(1, slots, confidence)

    def end_gaps(self, ends: Tensor, eos_token_id: int) -> Tensor:
        """Drop what follows the ends [R, N] of gaps, and return the texts where fixed tokens follow that, bool [R].

        There end-of-text tokens take its positions, as in what models are trained on.
        """
        before = self.gap_start
        self.gap_start, self.text_end = end_gaps(pad(ends, (0, 1)), before, self.text_end)
        dropped = self.gap_start == DROPPED
        self.tokens = self.tokens.masked_fill(dropped, eos_token_id)
        return (dropped & (before != DROPPED)).any(1)


@dataclass(eq=False)
class Schedule:
    """Progress of each text through its windows, [R].

    Attributes:
        window: where one may commit now.
        step: steps in this window before this one.
        mask_budget: masks in the window at its first step.
        hold: whether a window is not left although it has no masks.
        clean_until: see gen.text.contracts.KvStep.
        changed: whether the last step wrote anything.
    """

    window: Window
    step: Tensor
    mask_budget: Tensor
    hold: Tensor
    clean_until: Tensor
    changed: Tensor

    @classmethod
    def begin(cls, rows: int, device: torch.device) -> Schedule:
        step, mask_budget, hold, clean_until, changed = _zeros(5, rows, device)
        nowhere = Window(*(v - 1 for v in _zeros(4, rows, device)))
        return cls(nowhere, step, mask_budget, hold > 0, clean_until, changed == 0)


@dataclass(eq=False)
class Bookkeeping:
    """Identity, cost and end of each row, [R].

    Attributes:
        index: number of the text, by which its result is known.
        seeds: randomness of each.
        born: step of the loop at which each joined.
        ends: canvas that each needs, its text_end at first.
        extents: positions from the first generated one to the last.
        nfe, nfe_full, computed: see gen.text.decoding.Decoded.
        done: whether the text is finished.
        reason: 0, or 1 + the index of the stopping rule that ended the text.
        has_nan: whether logits are NaN.
    """

    index: list[int]
    seeds: list[int]
    born: list[int]
    ends: list[int]
    extents: list[int]
    nfe: Tensor
    nfe_full: Tensor
    computed: Tensor
    done: Tensor
    reason: Tensor
    has_nan: Tensor

    @classmethod
    def begin(
        cls, layouts: Sequence[Layout], index: list[int], seeds: list[int], born: int, device: torch.device
    ) -> Bookkeeping:
        nfe, nfe_full, computed, done, reason, has_nan = _zeros(6, len(seeds), device)
        ends, extents = [len(v.tokens) for v in layouts], [v.stop - v.start for v in layouts]
        lists = index, seeds, [born] * len(seeds), ends, extents
        return cls(*lists, nfe, nfe_full, computed, done > 0, reason, has_nan > 0)


def _zeros(count: int, rows: int, device: torch.device) -> list[Tensor]:
    """Return so many tensors int64 [rows], each with storage of its own."""
    return [torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(count)]


def take_rows(group: T, rows: Sequence[int]) -> T:
    """Return some rows of a dataclass of tensors, lists and such dataclasses.

    Args:
        group: the dataclass.
        rows: which ones.
    """
    taken: dict[str, Any] = {}
    for f in dataclasses.fields(group):  # type: ignore[arg-type]
        value = getattr(group, f.name)
        if isinstance(value, list):
            taken[f.name] = [value[i] for i in rows]
        elif isinstance(value, Tensor):
            taken[f.name] = value[torch.tensor(rows, dtype=torch.int64, device=value.device)]
        else:
            taken[f.name] = take_rows(value, rows)
    return type(group)(**taken)


def join_rows(one: T, other: T) -> T:
    """Return the rows of two dataclasses of tensors, lists and such dataclasses.

    Args:
        one, other: the dataclasses, their tensors alike but for the number of rows.
    """
    joined: dict[str, Any] = {}
    for f in dataclasses.fields(one):  # type: ignore[arg-type]
        a, b = getattr(one, f.name), getattr(other, f.name)
        if isinstance(a, list):
            joined[f.name] = a + b
        else:
            joined[f.name] = torch.cat([a, b]) if isinstance(a, Tensor) else join_rows(a, b)
    return type(one)(**joined)


def join_states(one: RowState, other: Mapping[str, Tensor]) -> RowState:
    """Return the rows of two states of a policy or a rule; where one has longer rows, zeros fill the other's.

    Args:
        one: state of the rows that are there.
        other: state of those that join.
    """
    joined: dict[str, Tensor] = {}
    for key, a in one.items():
        b = other[key].to(a)
        width = [max(m, n) for m, n in zip(a.shape[1:], b.shape[1:], strict=True)]
        sides = [[p for have, want in zip(v.shape[:0:-1], width[::-1], strict=True) for p in (0, want - have)]
                 for v in (a, b)]  # fmt: skip
        joined[key] = torch.cat([pad(v, side) for v, side in zip((a, b), sides, strict=True)])
    return joined

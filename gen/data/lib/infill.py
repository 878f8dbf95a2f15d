"""Infilling data: what of a text is given, on both sides of gaps, and what is to be filled in."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gen.config.fields import check_fields
from gen.diffusion.noise import derive

__all__ = ["Infill", "Middle", "Spans", "infilled"]


class Infill(Protocol):
    """Gaps of a text.

    Attributes:
        room: most end-of-text tokens that follow the text of a gap, of which each number is as likely; 0 for gaps that
            are as long as their text. By them a model learns to end a gap that is larger than it needs.
    """

    room: int

    @abstractmethod
    def gaps(self, n: int, draw: random.Random) -> list[tuple[int, int]]:
        """Draw the first position of each gap and the one after its last, in order; they neither meet nor are empty.

        Args:
            n: tokens of the text, at least 1.
            draw: random numbers.
        """
        ...


@dataclass(frozen=True)
class Middle(Infill):
    """One gap between two random positions: prefix and suffix are given, as in fill-in-the-middle.

    Bavarian et al. 2022, arXiv 2207.14255, section 3: the two cuts are uniform. The parts stay in their order, since a
    model that sees both sides needs no other.

    Attributes:
        room: see Infill.
    """

    room: int = 0

    def __post_init__(self) -> None:
        check_fields(self, room="[0, inf)")

    def gaps(self, n: int, draw: random.Random) -> list[tuple[int, int]]:
        first, last = sorted(draw.sample(range(n + 1), 2))
        return [(first, last)]


@dataclass(frozen=True)
class Spans(Infill):
    """Random spans, as of T5 (Raffel et al. 2020, section 3.1.4): a share of the tokens, in spans of a mean length.

    Attributes:
        share: share of the tokens that lie in gaps, in (0, 1].
        mean: mean length of a span in tokens; lengths are geometric.
        room: see Infill.
    """

    share: float = 0.3
    mean: float = 8.0
    room: int = 0

    def __post_init__(self) -> None:
        check_fields(self, share="(0, 1]", mean="[1, inf)", room="[0, inf)")

    def gaps(self, n: int, draw: random.Random) -> list[tuple[int, int]]:
        left, sizes = max(1, round(self.share * n)), list[int]()
        while left > 0 and len(sizes) <= n - sum(sizes) - left:  # each but the first needs a token before it
            size = 1
            while size < left and draw.random() >= 1 / self.mean:
                size += 1
            sizes.append(size)
            left -= size
        sizes[-1] += left  # where hardly anything is given
        spare = n - sum(sizes) - (len(sizes) - 1)
        before = sorted(draw.randint(0, spare) for _ in sizes)
        starts = [at + i + sum(sizes[:i]) for i, at in enumerate(before)]
        return [(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def infilled(ids: Sequence[int], length: int, infill: Infill, stop: int, key: int) -> dict[str, Tensor]:
    """Return an item of text with gaps: x [length], what is given, bool [length], and the length of its text.

    Args:
        ids: tokens of the text, at least one.
        length: tokens of a window; what does not fit is cut.
        infill: of which the gaps are.
        stop: the end-of-text token that fills gaps and windows.
        key: equal keys give equal items.
    """
    draw = random.Random(derive("infill", key))
    tokens, given, end = list[int](), list[bool](), 0
    for first, last in infill.gaps(len(ids), draw):
        size = last - first + draw.randint(0, infill.room)
        tokens += [*ids[end:last], *[stop] * (size - (last - first))]
        given += [*[True] * (first - end), *[False] * size]
        end = last
    tokens, given = [*tokens, *ids[end:]][:length], [*given, *[True] * (len(ids) - end)][:length]
    rest = length - len(tokens)
    x, known = torch.tensor([*tokens, *[stop] * rest]), torch.tensor([*given, *[True] * rest])
    return {"x": x, "given": known, "length": torch.tensor(len(tokens))}

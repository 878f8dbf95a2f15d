"""Editing: what a user marks in a text becomes gaps, all other tokens stay."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from itertools import groupby
from numbers import Integral
from typing import Any

from gen.config.errors import UserError, shown
from gen.text.detokenize import Decode, text_pieces
from gen.text.gaps import Gap

__all__ = ["Span", "with_gaps"]

Span = str | tuple[int, int]


def with_gaps(ids: Sequence[int], decode: Decode, spans: Span | Sequence[Span], gap: Gap | None) -> list[int | Gap]:
    """Return a text's ids with gaps instead of all tokens that a span touches; neighbours are one gap.

    Args:
        ids: of the text.
        decode: maps ids to their string.
        spans: characters of that string, (first, one after the last), or words that occur once in it; one or several.
        gap: what stands instead of each; None for as many tokens as there were.

    Raises:
        UserError: for no spans, and for those that the text does not hold, or holds more than once.
    """
    pieces = text_pieces(ids, decode)
    text = "".join(piece for piece, _ in pieces)
    if not (gap is None or isinstance(gap, Gap)):
        raise UserError(f"edit: gap = {shown(gap)}; a Gap, such as Gap(max=8), or None")
    several: list[Any] = [spans] if isinstance(spans, str) or not isinstance(spans, Iterable) else [*spans]
    if len(several) == 2 and all(isinstance(v, Integral) for v in several):
        several = [several]
    bounds = [_bounds(span, text) for span in several]
    if not bounds:
        raise UserError("edit: no spans; give (start, end) of characters, or words of the text")
    marked, at = list[bool](), 0
    for piece, count in pieces:
        marked += [any(first < at + len(piece) and at < last for first, last in bounds)] * count
        at += len(piece)
    prompt = list[int | Gap]()
    for is_marked, run in groupby(range(len(ids)), marked.__getitem__):
        tokens = [ids[k] for k in run]
        prompt += [gap or Gap(len(tokens))] if is_marked else tokens
    return prompt


def _bounds(span: Any, text: str) -> tuple[int, int]:
    """Return the first character of a span, and the one after the last."""
    if isinstance(span, str):
        times = sum(text.startswith(span, at) for at in range(len(text))) if span else 0
        if times != 1:
            raise UserError(f"edit: {shown(span)} occurs {times} times in the text; give its (start, end)")
        return text.index(span), text.index(span) + len(span)
    try:
        first, last = map(operator.index, span)
    except (TypeError, ValueError):
        raise UserError(f"edit: a span is {shown(span)}; (start, end) of characters, or words of the text") from None
    if not 0 <= first < last <= len(text):
        raise UserError(f"edit: the span ({first}, {last}) of a text of {len(text)} characters; 0 <= start < end <= it")
    return first, last

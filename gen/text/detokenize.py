"""Strings of texts that are decoded in part: tokens are no letters, so a text is not the strings of its tokens.

A character may be several tokens (bytes), and a token's string depends on its neighbours (spaces, "##ing").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

__all__ = ["partial_text", "text_pieces"]

MASK = "·"
BROKEN = "\ufffd"  # stands for bytes that are no character yet
Decode = Callable[[Sequence[int]], str]


def partial_text(tokens: Sequence[int | None], decode: Decode, separator: str, context: Iterable[int] = ()) -> str:
    """Return the string of a text with masks, "·" each, as is a torn character; without masks it is decode(tokens).

    Args:
        tokens: ids, None for a mask.
        decode: maps ids to their string.
        separator: string between two words that are tokens.
        context: ids of which one stands before tokens that follow a mask, so that they are not read as the text's
            first, which has no space before it.
    """
    known = [*context, *(token for token in tokens if token is not None)]
    before = next((token for token in known if decode([token]).strip() and BROKEN not in decode([token])), None)
    parts = list[str]()
    for is_mask, group in groupby(tokens, lambda token: token is None):
        if is_mask:
            for _ in group:
                parts.append((separator if parts else "") + MASK)
        else:
            run = [token for token in group if token is not None]
            parts.append(_following(before if parts else None, run, decode))
    text = "".join(parts)
    return text.replace(BROKEN, MASK) if None in tokens else text


def text_pieces(tokens: Sequence[int], decode: Decode) -> list[tuple[str, int]]:
    """Return a text's string in pieces, and how many tokens each is; put together they are decode(tokens).

    A piece is as few tokens as make whole characters.

    Args:
        tokens: ids.
        decode: maps ids to their string.
    """
    pieces, start = list[tuple[str, int]](), 0
    for end in range(1, len(tokens) + 1):
        whole = decode(tokens[:end])
        if whole.endswith(BROKEN) and end < len(tokens):
            continue
        while pieces and not whole.startswith("".join(piece for piece, _ in pieces)):
            start -= pieces.pop()[1]  # a later token has changed the string of earlier ones
        pieces.append((whole[sum(len(piece) for piece, _ in pieces) :], end - start))
        start = end
    return pieces


def _following(before: int | None, run: list[int], decode: Decode) -> str:
    """Return the string of tokens after another one."""
    if before is None:
        return decode(run)
    head, whole = decode([before]), decode([before, *run])
    return whole.removeprefix(head) if whole.startswith(head) else decode(run)

"""Arguments of a decoding loop: prompts, which may have gaps, and the lengths of texts."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from gen.config.errors import UserError, shown
from gen.text.contracts import Predictor
from gen.text.decoding import Decoding
from gen.text.gaps import FIXED, Gap, Layout, holds_gap

__all__ = ["Lengths", "Prompts", "layouts", "lengths_of"]

Prompts = Sequence[Sequence[int | Gap] | Tensor] | Tensor
Lengths = int | Sequence[int | None] | None


def lengths_of(length: Lengths, prompts: Sequence[Any]) -> list[int | None]:
    """Return the lengths of the texts after prompts; None for prompts with gaps, which have their own.

    Args:
        length: one number for all prompts without gaps, or one for each prompt, None for those with gaps; UserError for
            anything else, and for numbers below 1.
        prompts: ids and gaps of each.
    """
    n, gaps = len(prompts), [holds_gap(prompt) for prompt in prompts]
    several = isinstance(length, Iterable) and getattr(length, "ndim", 1) > 0
    given: Any = length if several else [None if gap else length for gap in gaps]
    if gaps and all(gaps) and length is not None and not several:
        raise UserError(f"decode: length = {length!r}, and every prompt has gaps, whose lengths it says itself")
    try:
        lengths = [None if v is None and gap else operator.index(v) for v, gap in zip(given, gaps, strict=False)]
    except TypeError:
        raise UserError(f"decode: length = {length!r}; a whole number, or one for each prompt") from None
    if len(given) != n or any(v is not None and v < 1 for v in lengths):
        raise UserError(f"decode: length = {length} for {n} prompts; one number or one each, at least 1")
    wrong = [i for i, (v, gap) in enumerate(zip(lengths, gaps, strict=True), 1) if gap and v is not None]
    if wrong:
        raise UserError(f"decode: prompt {wrong[0]} has gaps, which say their own lengths: its length is None")
    return lengths


def layouts(predictor: Predictor, prompts: Prompts, length: Lengths, decoding: Decoding) -> list[Layout]:
    """Return the canvases of texts before they are decoded.

    Args:
        predictor: whose ids they are.
        prompts: ids and gaps of each prompt, of any lengths.
        length: see `lengths_of`.
        decoding: its suppressed tokens must exist, too.

    Raises:
        UserError: for ids that do not exist, for no prompts and for what are none, for wrong lengths, and for gaps that
            the predictor cannot fill.
    """
    if not (callable(predictor) and hasattr(predictor, "mask_token_id")):
        raise UserError(f"decode: predictor = {shown(predictor)}; a network or an exact joint distribution of tokens")
    vocab, mask, suppressed = predictor.vocab_size, predictor.mask_token_id, decoding.suppress_tokens
    wrong = [token for token in suppressed if not 0 <= token < vocab]
    if wrong or len({*suppressed, mask}) >= vocab:
        what = f"suppress_tokens holds {wrong[0]}" if wrong else "suppress_tokens holds them all"
        raise UserError(f"decode: {what}; ids are 0 .. {vocab - 1}, and one has to be left")
    try:
        rows = [p.tolist() if isinstance(p, Tensor) else [*p] for p in prompts]
        given = [*zip(rows, lengths_of(length, rows), strict=True)]
        canvases = [Layout.of(prompt, n, mask) for prompt, n in given]
    except TypeError:
        raise UserError(f"decode: prompts = {shown(prompts)}; the ids of each, such as [[3, 1, 4]]") from None
    if not canvases:
        raise UserError("decode: no prompts")
    left = vocab - len({*suppressed, mask, *predictor.eos_token_ids})
    for i, canvas in enumerate(canvases, 1):
        fixed = canvas.tokens[canvas.gap_start == FIXED]
        unknown = (fixed < 0) | (fixed >= vocab) | (fixed == mask)
        if bool(unknown.any()):
            raise UserError(
                f"decode: prompt {i} holds {int(fixed[unknown][0])}; ids are 0 .. {vocab - 1} without the mask's, "
                f"{mask}"
            )
        if bool(canvas.exact.any()) and not left:
            raise UserError(f"decode: prompt {i} has a gap of a fixed length, and all ids but end-of-text suppressed")
        canvas.check_attention(predictor.block_size, i)
    return canvases

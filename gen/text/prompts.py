"""Arguments of a decoding loop: the ids of prompts, and the lengths of texts."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError, shown
from gen.text.contracts import Predictor
from gen.text.decoding import Decoding

__all__ = ["Prompts", "lengths_of", "prompt_ids"]

Prompts = Sequence[Sequence[int] | Tensor] | Tensor


def lengths_of(length: int | Sequence[int], n: int) -> list[int]:
    """Return the lengths of n texts.

    Args:
        length: one number for all, or one for each; UserError for anything else, and for numbers below 1.
        n: number of texts.
    """
    several = isinstance(length, Iterable) and getattr(length, "ndim", 1) > 0
    given: Any = length if several else [length] * n
    try:
        lengths = [operator.index(v) for v in given]
    except TypeError:
        raise UserError(f"decode: length = {length!r}; a whole number, or one for each prompt") from None
    if len(lengths) != n or any(v < 1 for v in lengths):
        raise UserError(f"decode: length = {length} for {n} prompts; one number or one each, at least 1")
    return lengths


def prompt_ids(predictor: Predictor, prompts: Prompts, decoding: Decoding) -> list[Tensor]:
    """Return each prompt's ids, int64.

    Args:
        predictor: whose ids they are.
        prompts: ids of each prompt, of any lengths.
        decoding: its suppressed tokens must exist, too.

    Raises:
        UserError: for ids that do not exist, for no prompts, and for what are none.
    """
    if not (callable(predictor) and hasattr(predictor, "mask_token_id")):
        raise UserError(f"decode: predictor = {shown(predictor)}; a network or an exact joint distribution of tokens")
    vocab, mask, suppressed = predictor.vocab_size, predictor.mask_token_id, decoding.suppress_tokens
    wrong = [token for token in suppressed if not 0 <= token < vocab]
    if wrong or len({*suppressed, mask}) >= vocab:
        what = f"suppress_tokens holds {wrong[0]}" if wrong else "suppress_tokens holds them all"
        raise UserError(f"decode: {what}; ids are 0 .. {vocab - 1}, and one has to be left")
    try:
        ids = [torch.tensor([operator.index(v) for v in p], dtype=torch.int64) for p in prompts]
    except TypeError:
        raise UserError(f"decode: prompts = {shown(prompts)}; the ids of each, such as [[3, 1, 4]]") from None
    if not ids:
        raise UserError("decode: no prompts")
    for i, p in enumerate(ids):
        unknown = (p < 0) | (p >= vocab) | (p == mask)
        if bool(unknown.any()):
            raise UserError(
                f"decode: prompt {i} holds {int(p[unknown][0])}; ids are 0 .. {vocab - 1} without the mask's, {mask}"
            )
    return ids

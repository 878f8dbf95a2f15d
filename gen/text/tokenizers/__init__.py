"""Tokenizers: text to ids and back, one file each. Contract: gen.text.contracts.Tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gen.config.errors import UserError

__all__ = ["id_fields", "text_end", "utf8"]


def id_fields(owner: Any) -> dict[str, Any]:
    """Return what a tokenizer and the network of its ids agree in: vocab_size, mask_token_id and eos_token_ids.

    Args:
        owner: a tokenizer, a network or its spec.
    """
    return {
        "vocab_size": owner.vocab_size,
        "mask_token_id": owner.mask_token_id,
        "eos_token_ids": list(owner.eos_token_ids),
    }


def text_end(x: Tensor, eos_token_ids: Sequence[int]) -> Tensor:
    """Return the position after the last token that is no end-of-text token, int64 [...].

    Args:
        x: ids, int64 [..., L].
        eos_token_ids: ids that end a text.
    """
    text = ~torch.isin(x, torch.tensor(eos_token_ids, dtype=x.dtype, device=x.device))
    return (text * torch.arange(1, x.shape[-1] + 1, device=x.device)).amax(-1)


def utf8(text: str) -> bytes:
    """Return a string's bytes in UTF-8.

    Args:
        text: the string; UserError for one with half a surrogate pair, which has none.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"a text has no UTF-8: its character {error.start} is {text[error.start]!a}, half a surrogate pair"
        ) from None

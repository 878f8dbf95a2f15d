"""Tokenizers: text to ids and back, one file each. Contract: gen.text.contracts.Tokenizer."""

from __future__ import annotations

from typing import Any

__all__ = ["id_fields"]


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

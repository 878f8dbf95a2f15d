"""Tokenisers: text to ids and back, one file each.

A tokeniser is a frozen dataclass with vocab (how many ids there are), mask (the id that stands for "not written yet"),
stops (ids that end a text, the first of which also pads), joint (what to print between a prompt and its text),
encode(text) -> ids, among them neither mask nor stops of its own accord, and decode(ids) -> text, which leaves mask and
stops out.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ids_of"]


def ids_of(thing: Any) -> dict[str, Any]:
    """What a tokeniser and the network of its ids agree in: vocab, mask and stops."""
    return {
        "vocab_size": thing.vocab_size,
        "mask_token_id": thing.mask_token_id,
        "eos_token_ids": list(thing.eos_token_ids),
    }

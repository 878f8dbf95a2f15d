"""Bytes: the tokenizer that needs no file and knows every language."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from gen.config.errors import UserError
from gen.text.contracts import Tokenizer
from gen.text.tokenizers import utf8

__all__ = ["Bytes"]


@dataclass(frozen=True)
class Bytes(Tokenizer):
    """The 256 bytes of UTF-8, then an end-of-text token, then the mask. Every string survives the round trip."""

    vocab_size: ClassVar[int] = 258
    mask_token_id: ClassVar[int] = 257
    eos_token_ids: ClassVar[tuple[int, ...]] = (256,)
    separator: ClassVar[str] = ""

    def encode(self, text: str) -> list[int]:
        return list(utf8(text))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the string; bytes that are no UTF-8, as in a text cut short, become U+FFFD."""
        given = [int(i) for i in ids]
        wrong = [i for i in given if not 0 <= i < self.vocab_size]
        if wrong:
            raise UserError(f"Bytes: id {wrong[0]}; allowed: 0 .. {self.vocab_size - 1}")
        return bytes(i for i in given if i < 256).decode(errors="replace")

"""Sentences: a short list of words in plain sentences, for captions of a synthetic world."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from gen.config.fields import check_fields
from gen.text.contracts import Tokenizer
from gen.text.tokenizers.words import Words

__all__ = ["Sentences"]


@dataclass(frozen=True)
class Sentences(Tokenizer):
    """Words as of gen.text.tokenizers.words, read from sentences: in any case, with punctuation as words of its own.

    "A bold seven, turned left" is a, bold, seven, the comma, turned, left. decode puts single spaces between words.
    Raises UserError for a word that is not in the list.

    Attributes:
        words: distinct, in lower case; punctuation that may occur is among them.
    """

    words: tuple[str, ...]
    separator: ClassVar[str] = " "

    def __post_init__(self) -> None:
        check_fields(self)
        self._words.encode("")

    @cached_property
    def _words(self) -> Words:
        return Words(self.words)

    @property
    def vocab_size(self) -> int:
        return self._words.vocab_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self._words.eos_token_ids

    @property
    def mask_token_id(self) -> int:
        return self._words.mask_token_id

    def encode(self, text: str) -> list[int]:
        return self._words.encode(" ".join(re.findall(r"\w+|[^\w\s]", text.lower())))

    def decode(self, ids: Iterable[int]) -> str:
        return self._words.decode(ids)

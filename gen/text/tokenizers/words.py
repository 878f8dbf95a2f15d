"""Words: a short list of them, one id each, for synthetic worlds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from gen.config.errors import UserError, nearest
from gen.config.fields import check_fields
from gen.text.contracts import Tokenizer

__all__ = ["Words"]


@dataclass(frozen=True)
class Words(Tokenizer):
    """Ids 0 .. n - 1 are the words, n is the end of text and n + 1 the mask.

    Text is split at white space and nowhere else, and put together with single spaces: decode(encode(text)) is
    " ".join(text.split()), and encode(decode(ids)) is ids without end and mask. So a symbol such as ":" is a word where
    it stands alone. Raises UserError for a word that is not in the list.

    Attributes:
        words: distinct and without white space.
    """

    words: tuple[str, ...]
    separator: ClassVar[str] = " "

    def __post_init__(self) -> None:
        check_fields(self)
        wrong = [word for word in self.words if word.split() != [word] or self.words.count(word) > 1]
        if wrong or not self.words:
            given = f"{wrong[0]!r}" if wrong else "no word at all"
            raise UserError(f"Words: {given}; words differ from one another and hold no white space")

    @property
    def vocab_size(self) -> int:
        return len(self.words) + 2

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return (len(self.words),)

    @property
    def mask_token_id(self) -> int:
        return len(self.words) + 1

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """The id of each word."""
        return {word: i for i, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        given = text.split()
        unknown = [word for word in given if word not in self.ids]
        if unknown:
            raise UserError(f"Words: unknown {unknown[0]!r}. {nearest(unknown[0], self.words)}")
        return [self.ids[word] for word in given]

    def decode(self, ids: Iterable[int]) -> str:
        given = [int(i) for i in ids]
        wrong = [i for i in given if not 0 <= i < self.vocab_size]
        if wrong:
            raise UserError(f"Words: id {wrong[0]}; allowed: 0 .. {self.vocab_size - 1}")
        return " ".join(self.words[i] for i in given if i < len(self.words))

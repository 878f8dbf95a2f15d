"""The contract of a tokenizer: text to ids and back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

__all__ = ["Tokenizer"]


@runtime_checkable
class Tokenizer(Protocol):
    """Maps strings to token ids and back. A frozen dataclass, so that a run can be written down with it.

    It may have `with_files_in(folder)`, which returns the same tokenizer with its file looked for in a checkpoint's
    folder. One of chats has `chat`, its gen.text.chat.ChatTemplate, `special_tokens`, the names that are no text, and
    `encode_template(text, broken)`, see gen.text.tokenizers.huggingface.
    """

    @property
    def vocab_size(self) -> int:
        """Number of ids, those of the mask and of the end of text included."""
        ...

    @property
    def mask_token_id(self) -> int:
        """Id of the mask token."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a text; the first of them also pads."""
        ...

    @property
    def separator(self) -> str:
        """String that is printed between a prompt and its text."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return a string's ids, without mask and end of text.

        Args:
            text: any string; UserError for one that has no ids.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Return the string of ids, leaving out mask and end of text.

        Args:
            ids: from 0 .. vocab_size - 1; UserError for others.
        """
        ...

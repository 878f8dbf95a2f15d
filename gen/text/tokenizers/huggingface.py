"""The tokeniser of a Hugging Face model: a tokenizer.json file, read by the package tokenizers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from gen.config.errors import MissingDependency, UserError, nearest

__all__ = ["HuggingFace"]


@dataclass(frozen=True)
class HuggingFace:
    """file: a tokenizer.json. mask_token, eos_tokens: the tokens' text ("<|im_end|>") or their ids.

    sha256: of the file, checked when it is read. size: how many ids the model has, where it has more than the file
    names. The file is read when it is first used. What marks a token in a text, such as "<|im_start|>", is read as that
    token; nothing is put before or after a text. Raises UserError for a file that is missing, damaged or another one,
    and MissingDependency without the package.
    """

    file: str
    mask_token: str | int
    eos_tokens: tuple[str | int, ...] = ()
    sha256: str | None = None
    size: int | None = None
    separator: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "eos_tokens", tuple(self.eos_tokens))

    def beside(self, folder: Path) -> HuggingFace:
        """The same with its file looked for in a folder, unless its path is absolute."""
        return replace(self, file=str(folder / self.file))

    @cached_property
    def read(self) -> Any:
        """The tokenizers.Tokenizer."""
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingDependency("HuggingFace needs the package tokenizers: pip install tokenizers") from error
        path = Path(self.file)
        if not path.is_file():
            raise UserError(f"HuggingFace: there is no file {path}; give a tokenizer.json")
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if self.sha256 is not None and found != self.sha256:
            raise UserError(
                f"{path} has sha256 {found[:16]}..., expected {self.sha256[:16]}...: it is another tokeniser"
            )
        try:
            return Tokenizer.from_str(content.decode())
        except Exception as error:  # the package raises plain Exception
            raise UserError(f"{path} is damaged, or no tokenizer.json ({' '.join(str(error).split())[:200]})") from None

    @cached_property
    def vocab_size(self) -> int:
        given = (i for i in (self.mask_token, *self.eos_tokens) if isinstance(i, int))
        largest = max(0, *self.read.get_vocab(with_added_tokens=True).values(), *given)
        if self.size is not None and self.size <= largest:
            raise UserError(f"HuggingFace: size = {self.size}, and {self.file} has ids up to {largest}")
        return largest + 1 if self.size is None else self.size

    @cached_property
    def mask_token_id(self) -> int:
        return self._id(self.mask_token)

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        return tuple(self._id(token) for token in self.eos_tokens)

    def encode(self, text: str) -> list[int]:
        return self.read.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Without mask, stops, and whatever else the file calls special."""
        left_out = {self.mask_token_id, *self.eos_token_ids}
        return self.read.decode([i for i in map(int, ids) if i not in left_out], skip_special_tokens=True)

    def _id(self, token: str | int) -> int:
        if isinstance(token, int):
            return token
        found: int | None = self.read.token_to_id(token)
        if found is None:
            special = [str(t.content) for t in self.read.get_added_tokens_decoder().values()]
            raise UserError(f"HuggingFace: {self.file} has no token {token!r}. {nearest(token, special)}")
        return found

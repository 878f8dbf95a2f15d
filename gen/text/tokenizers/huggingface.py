"""The tokenizer of a Hugging Face model: a tokenizer.json file, read by the package tokenizers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from gen.config.errors import MissingDependency, UserError, nearest
from gen.config.fields import check_fields
from gen.config.reading import file_sha256
from gen.text.chat import ChatTemplate, chat_template_beside
from gen.text.contracts import Tokenizer
from gen.text.tokenizers import utf8

__all__ = ["HuggingFace"]


@dataclass(frozen=True)
class HuggingFace(Tokenizer):
    """A tokenizer.json file, read when it is first used.

    Nothing is put before or after a text, and text is text: "<|im_start|>" in it is letters, not the special token of
    that name, which a chat template alone puts there. What a file says of training does not count: truncation, padding
    and BPE dropout are off. Raises UserError for a file that is missing, damaged or another one, and MissingDependency
    without the package.

    Attributes:
        file: path of the tokenizer.json.
        mask_token: the mask's text ("<|mask|>") or its id.
        eos_tokens: texts ("<|im_end|>") or ids of the tokens that end a text.
        sha256: hash of the file, checked when it is read; None for that of the file as it is now, so that a run and its
            checkpoints know which one they were trained with.
        size: number of ids of the model, where it has more than the file names; None for those of the file.
        chat: the template of chats; None beside no sha256 for that of the file's folder, if it has one, so that a run
            and its checkpoints keep it.
        rendered: whether texts name special tokens by their names, as those do that a template was applied to before.
    """

    file: str
    mask_token: str | int
    eos_tokens: tuple[str | int, ...] = ()
    sha256: str | None = None
    size: int | None = None
    chat: ChatTemplate | None = None
    rendered: bool = False
    separator: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_fields(self, size="[1, inf)")
        if self.sha256 is None and (file := Path(self.file)).is_file():
            object.__setattr__(self, "sha256", file_sha256(file))
            if self.chat is None:
                object.__setattr__(self, "chat", chat_template_beside(file))

    def with_files_in(self, folder: Path) -> HuggingFace:
        """Return the same with its file looked for in a folder, unless its path is absolute."""
        return replace(self, file=str(folder / self.file))

    @cached_property
    def backend(self) -> Any:
        """The tokenizers.Tokenizer of the file."""
        try:
            import tokenizers
        except ImportError as error:
            raise MissingDependency(
                "HuggingFace needs the package tokenizers: pip install 'gen-diffusion[text]'"
            ) from error
        path = Path(self.file)
        if not path.is_file():
            raise UserError(f"HuggingFace: there is no file {path}; give a tokenizer.json")
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if self.sha256 is not None and digest != self.sha256:
            raise UserError(
                f"{path} has sha256 {digest[:16]}..., expected {self.sha256[:16]}...: it is another tokenizer"
            )
        try:
            backend = tokenizers.Tokenizer.from_str(content.decode("utf-8-sig"))
        except Exception as error:  # the package raises plain Exception
            raise UserError(f"{path} is damaged, or no tokenizer.json ({' '.join(str(error).split())[:200]})") from None
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None) is not None:
            backend.model.dropout = None
        return backend

    @cached_property
    def vocab_size(self) -> int:
        given = (i for i in (self.mask_token, *self.eos_tokens) if isinstance(i, int))
        largest = max(0, *self.backend.get_vocab(with_added_tokens=True).values(), *given)
        if self.size is not None and self.size <= largest:
            raise UserError(f"HuggingFace: size = {self.size}, and {self.file} has ids up to {largest}")
        return largest + 1 if self.size is None else self.size

    @cached_property
    def mask_token_id(self) -> int:
        return self._id(self.mask_token)

    @cached_property
    def eos_token_ids(self) -> tuple[int, ...]:
        return tuple(self._id(token) for token in self.eos_tokens)

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """Names of the tokens that are no text, the longest first."""
        added = self.backend.get_added_tokens_decoder()
        marks = {self.mask_token_id, *self.eos_token_ids}
        named = [str(token.content) for i, token in added.items() if token.special or i in marks]
        return tuple(sorted(named, key=len, reverse=True))

    def encode(self, text: str) -> list[int]:
        return self._encode(text, self.rendered)

    def encode_template(self, text: str, broken: str) -> list[int]:
        """Return the ids of what a template wrote; special tokens that it names are those tokens.

        Args:
            text: what it wrote.
            broken: the character in the names that were no tokens before (gen.text.chat.break_names); it is taken out.
        """
        if broken not in text:
            return self._encode(text, True)
        names = "|".join(map(re.escape, self.special_tokens))
        pieces = re.split(f"({names})(?!{re.escape(broken)})", text)  # a name of one character is whole before it
        ids = list[int]()
        for i, piece in enumerate(pieces):
            ids += [self._id(piece)] if i % 2 else self._encode(piece.replace(broken, ""), False)
        return ids

    def _encode(self, text: str, special: bool) -> list[int]:
        utf8(text)
        self.backend.encode_special_tokens = not special
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the string, without mask, end of text and whatever else the file calls special."""
        left_out = {self.mask_token_id, *self.eos_token_ids}
        return self.backend.decode([i for i in map(int, ids) if i not in left_out], skip_special_tokens=True)

    def _id(self, token: str | int) -> int:
        if isinstance(token, int):
            return token
        found: int | None = self.backend.token_to_id(token)
        if found is None:
            special = [str(t.content) for t in self.backend.get_added_tokens_decoder().values()]
            raise UserError(f"HuggingFace: {self.file} has no token {token!r}. {nearest(token, special)}")
        return found

"""Text from files, cut into windows of tokens; without a file, the pages of Python's own help."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.reading import parse_json, read_lines, read_text
from gen.config.spec import part
from gen.data.lib.checksums import check_sums
from gen.data.lib.tensors import content_hash, hold_out
from gen.text.contracts import Tokenizer

__all__ = ["Text"]

Window = tuple[list[int], int]  # tokens, and how many of the first are a prompt


@dataclass(frozen=True)
class Text:
    """Windows of `length` tokens of text files, or prompts and responses of JSONL.

    A text ends with the tokenizer's first end-of-text token, and more of them fill its last window; how many of those
    are seen and trained is the objective's business (gen.training.objectives.lib.masked.window_ends), so that nothing
    tells a model how long a text is. A line of JSONL holds "text", or "prompt" and "response": the latter is one
    window, its prompt is not trained, and a response that does not fit is cut off. The same windows are held out
    always.

    Attributes:
        path: a file, a glob or a folder (all below it that ends in .txt, .md or .jsonl); None for the 79 pages of
            pydoc_data.topics, which every Python has.
        tokenizer: a plug-in of gen.text.tokenizers.
        length: tokens of a window, at least 2.
        holdout: the share of the windows held out for "test", in [0, 1).
    """

    path: str | None = None
    tokenizer: Tokenizer = part("text.tokenizers", default="bytes")
    length: int = 128
    holdout: float = 0.05

    def __post_init__(self) -> None:
        check_fields(self, length="[2, inf)", holdout="[0, 1)")
        if not self.tokenizer.eos_token_ids:
            raise UserError(f"Text: {type(self.tokenizer).__name__} has no end-of-text token")

    @property
    def vocab_size(self) -> int:
        """The number of token ids, stop and mask tokens included."""
        return self.tokenizer.vocab_size

    @property
    def shape(self) -> tuple[int]:
        """The shape (L,) of one window."""
        return (self.length,)

    @property
    def classes(self) -> int:
        """0: text has no labels."""
        return 0

    def open(self, split: str) -> Windows:
        """Open "train" or "test"."""
        found = list[Window]()
        for source, text in self.texts():
            try:
                found += self.windows(text)
            except UserError as error:
                raise UserError(f"{source}: {error}") from None
        where = f"Text({self.path or 'pydoc_data.topics'})"
        if not found:
            raise UserError(f"{where} holds no text")
        rows = hold_out(where, split, len(found), self.holdout)
        x = torch.full((len(rows), self.length), self.tokenizer.eos_token_ids[0], dtype=torch.int32)
        for row, i in zip(x, rows, strict=True):
            row[: len(found[i][0])] = torch.tensor(found[i][0], dtype=torch.int32)
        prompt = torch.tensor([found[i][1] for i in rows])
        return Windows(x, prompt, content_hash("text", x, prompt))

    def texts(self) -> Iterator[tuple[str, str | tuple[str, str]]]:
        """Yield where each text is from, and the whole text or a pair of prompt and response."""
        if self.path is None:
            from pydoc_data.topics import topics

            yield from ((f"pydoc_data.topics, {name}", topics[name]) for name in sorted(topics))
            return
        for file in self.text_files():
            if file.suffix == ".jsonl":
                yield from _records(file)
            else:
                yield str(file), read_text(file).replace("\r\n", "\n")

    def text_files(self) -> list[Path]:
        """The files of `path`, sorted; UserError where there are none."""
        given = Path(str(self.path))
        if given.is_dir():
            found = [f for f in given.rglob("*") if f.suffix in (".txt", ".md", ".jsonl")]
        else:
            found = (
                [given]
                if given.is_file()
                else list(Path(given.anchor or ".").glob(str(given.relative_to(given.anchor))))
            )
        found = sorted(f for f in found if f.is_file())
        check_sums(given, dict.fromkeys(found))
        if not found:
            raise UserError(f"Text: no file at {given}; give a file, a glob or a folder of .txt, .md and .jsonl files")
        return found

    def windows(self, text: str | tuple[str, str]) -> Iterator[Window]:
        """Yield a text as windows, or a pair of prompt and response as one."""
        stop = self.tokenizer.eos_token_ids[0]
        if isinstance(text, str):
            ids = [*self.encode(text), stop] if text else []
            for i in range(0, len(ids), self.length):
                yield ids[i : i + self.length], 0
            return
        prompt, response = map(self.encode, text)
        if len(prompt) >= self.length:
            raise UserError(
                f"the prompt has {len(prompt)} tokens, and leaves no room for its response in windows of {self.length}"
            )
        yield [*prompt, *response, stop][: self.length], len(prompt)

    def encode(self, text: str) -> list[int]:
        """Return a text's ids; UserError for one that names the mask token, which no text holds."""
        ids = self.tokenizer.encode(text)
        if self.tokenizer.mask_token_id in ids:
            raise UserError("a text names the mask token, which stands for what is not known yet")
        return ids


@dataclass(frozen=True, eq=False)
class Windows:
    """Items {"x": int64 [L], "prompt": int64 0-d}; end-of-text tokens fill the rest of a text's last window."""

    x: Tensor
    prompt: Tensor
    fingerprint: str

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int | Tensor) -> dict[str, Tensor]:
        return {"x": self.x[i].long(), "prompt": self.prompt[i]}

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the items of some rows, stacked."""
        return self[torch.tensor(rows)]


def _records(file: Path) -> Iterator[tuple[str, str | tuple[str, str]]]:
    """Yield file and number of every line, and its text or pair."""
    for number, line in enumerate(read_lines(file), 1):
        where = f"{file}, line {number}"
        if not line.strip():
            continue
        record = parse_json(line, where)
        if not isinstance(record, dict):
            raise UserError(f'{where} is {line:.40}; a line is an object with "text", or "prompt" and "response"')
        keys = [key for key in ("text", "prompt", "response") if key in record]
        if keys not in (["text"], ["prompt", "response"]):
            fields = ", ".join(f'"{key}"' for key in record) or "none"
            raise UserError(f'{where} has the fields {fields:.200}; it needs "text", or "prompt" and "response"')
        for key in keys:
            if not isinstance(record[key], str):
                raise UserError(f'{where}: "{key}" is {json.dumps(record[key]):.40}; it must be a string')
        yield where, record["text"] if keys == ["text"] else (record["prompt"], record["response"])

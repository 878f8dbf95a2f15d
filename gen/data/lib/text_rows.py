"""Rows of text data: texts, pairs of prompt and response, and chats, as windows of tokens."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.reading import parse_json
from gen.text.chat import chat_messages, chat_pairs
from gen.text.contracts import Tokenizer

__all__ = ["Row", "RowEncoder", "Truncate", "Window", "pack", "parse_line", "parse_row", "row_columns"]

Truncate = Literal["response", "prompt", "drop"]
FIELDS = ("text", "prompt", "response", "messages")
NEEDS = '"text", or "prompt" and "response", or "messages"'


class Window(NamedTuple):
    """Tokens, of which the first `prompt` are given."""

    ids: list[int]
    prompt: int


class Row(NamedTuple):
    """The content of a line or of a row of a table.

    Attributes:
        content: a text, a pair of prompt and response, or checked messages.
        tools: number of messages and definitions of tools that were left out.
    """

    content: str | tuple[str, str] | list[dict[str, str]]
    tools: int = 0

    @property
    def written(self) -> str:
        """The text, the response of a pair, or the last message of a chat."""
        content = self.content
        return (
            content
            if isinstance(content, str)
            else content[1]
            if isinstance(content, tuple)
            else content[-1]["content"]
        )


def row_columns(known: Sequence[str], where: str, columns: Sequence[str] = ()) -> list[str]:
    """Return the fields of a row that are read.

    Args:
        known: names of its fields.
        where: names the row, for the message.
        columns: one or two that are stated; () for FIELDS.

    Raises:
        UserError: if they are not there, or say more than one thing.
    """
    keys = list(columns) or [key for key in FIELDS if key in known]
    if not columns and "messages" in keys:
        keys = ["messages"]
    if set(columns) - set(known) or (not columns and keys not in (["text"], ["prompt", "response"], ["messages"])):
        fields = ", ".join(f'"{key}"' for key in known) or "none"
        needs = ", ".join(f'"{key}"' for key in columns) if columns else NEEDS
        own = ", ".join(f'"{key}"' for key in known[:2])
        hint = f"; fields by other names: --data.columns '[{own:.100}]'" if known else ""
        raise UserError(f"{where} has the fields {fields:.200}; it needs {needs}{hint}")
    return keys


def parse_row(record: Mapping[str, Any], where: str, columns: Sequence[str] = ()) -> Row:
    """Return what a record holds.

    Args:
        record: values by name.
        where: names it, for the message.
        columns: see `row_columns`.

    Raises:
        UserError: names the record, and the field that is wrong.
    """
    keys = row_columns(list(record), where, columns)
    values = [record[key] for key in keys]
    if len(keys) == 1 and (keys == ["messages"] or isinstance(values[0], list)):
        try:
            messages, tools = chat_messages(values[0])
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        return Row(messages, tools + bool(record.get("tools")))
    for key, value in zip(keys, values, strict=True):
        if not isinstance(value, str):
            raise UserError(f'{where}: "{key}" is {json.dumps(value, default=str):.40}; it must be a string')
    return Row(values[0] if len(values) == 1 else (values[0], values[1]))


def parse_line(line: str, where: str, columns: Sequence[str] = ()) -> Row:
    """Return what a line of JSON holds.

    Args:
        line: not empty.
        where, columns: see `parse_row`.
    """
    record = parse_json(line, where)
    if not isinstance(record, dict):
        raise UserError(f"{where} is {line:.40}; a line is an object with {NEEDS}")
    return parse_row(record, where, columns)


@dataclass
class RowEncoder:
    """Encoder of rows, which counts what it cuts.

    Attributes:
        tokenizer: of the text data.
        length: tokens of a window.
        truncate: see gen.data.text.Text.
        turns: "last" or "every"; see there.
        texts_only: whether pairs and chats are refused.
        cut, lost, dropped, tools: rows that were cut, tokens cut off, rows left out, rows with tools.
    """

    tokenizer: Tokenizer
    length: int
    truncate: Truncate
    turns: str
    texts_only: bool = False
    cut: int = 0
    lost: int = 0
    dropped: int = 0
    tools: int = 0

    def windows(self, row: Row, where: str) -> Iterator[Window]:
        """Yield the windows of a row: a text is as many as it fills, a pair is one, and a chat one for each response.

        Args:
            row: see Row.
            where: names it, for the message.
        """
        try:
            yield from self._windows(row)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def _windows(self, row: Row) -> Iterator[Window]:
        content, stop = row.content, self.tokenizer.eos_token_ids[0]
        self.tools += bool(row.tools)
        if isinstance(content, str):
            ids = [*self._checked(self.tokenizer.encode(content)), stop] if content else []
            for i in range(0, len(ids), self.length):
                yield Window(ids[i : i + self.length], 0)
            return
        if self.texts_only:
            raise UserError("infilling is of texts, and this is a prompt with its response: leave out data.infill")
        if isinstance(content, tuple):
            prompt, response = map(self.tokenizer.encode, content)
            pairs = iter([(prompt, [*response, stop])])
        else:
            pairs = chat_pairs(self.tokenizer, content, self.turns == "every")
        for prompt, response in pairs:
            yield from self._fitting(self._checked(prompt), self._checked(response))

    def _checked(self, ids: list[int]) -> list[int]:
        if self.tokenizer.mask_token_id in ids:
            raise UserError("a text names the mask token, which stands for what is not known yet")
        return ids

    def _fitting(self, prompt: list[int], response: list[int]) -> Iterator[Window]:
        """Yield one window of a pair, or none."""
        over = len(prompt) + len(response) - self.length
        if over > 0 and self.truncate == "drop":
            self.dropped, self.lost = self.dropped + 1, self.lost + len(prompt) + len(response)
            return
        if over > 0 and self.truncate == "prompt":
            prompt = prompt[min(over, len(prompt)) :]
        if len(prompt) >= self.length:
            raise UserError(
                f"the prompt has {len(prompt)} tokens, and leaves no room for its response in windows of {self.length}"
                ": set data.length, or data.truncate to prompt or drop"
            )
        if over > 0:
            self.cut, self.lost = self.cut + 1, self.lost + over
        yield Window([*prompt, *response][: self.length], len(prompt))

    def report(self, where: str) -> None:
        """Warn of what was cut and left out.

        Args:
            where: names the data.
        """
        said, fields = f"{where}: {self.lost} tokens are lost", "(data.length, data.truncate)"
        if self.cut:
            side = "the beginning of the prompts" if self.truncate == "prompt" else "the end of the responses"
            said += f" at {side} of {self.cut} rows that are longer than {self.length} {fields}"
        if self.dropped:
            said += f" with {self.dropped} rows that are left out, longer than {self.length} {fields}"
        if self.lost:
            warnings.warn(said, stacklevel=3)
        if self.tools:
            warnings.warn(f"{where}: tools are left out, in {self.tools} rows", stacklevel=3)


def pack(windows: Sequence[Window], length: int, multiple: int, stop: int) -> dict[str, Tensor]:
    """Return windows of several texts each, in their order: x, what is given, and the number of each one's document.

    Args:
        windows: of which each becomes a document.
        length: tokens of a window.
        multiple: documents begin at multiples of it, and end-of-text tokens fill them up.
        stop: the end-of-text token.

    Returns:
        x int32, given bool and document int32, [N, length] each; what follows the last document is a given one.
    """
    shares = [min(length, -(-len(window.ids) // multiple) * multiple) for window in windows]
    groups, free = list[list[int]](), 0
    for i, share in enumerate(shares):
        if share > free:
            groups.append([])
            free = length
        groups[-1].append(i)
        free -= share
    x = torch.full((len(groups), length), stop, dtype=torch.int32)
    given, document = torch.ones_like(x, dtype=torch.bool), torch.zeros_like(x)
    for row, group in enumerate(groups):
        at = 0
        for number, i in enumerate(group):
            (ids, prompt), end = windows[i], at + shares[i]
            x[row, at : at + len(ids)] = torch.tensor(ids, dtype=torch.int32)
            given[row, at + prompt : end] = False
            document[row, at:end] = number
            at = end
        document[row, at:] = len(group)
    return {"x": x, "given": given, "document": document}

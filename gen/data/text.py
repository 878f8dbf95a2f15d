"""Text from files, cut into windows of tokens; without a file, the pages of Python's own help."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.config.reading import read_lines, read_text
from gen.config.spec import digest, part, spec_of
from gen.data.lib.checksums import check_sums
from gen.data.lib.infill import Infill, infilled
from gen.data.lib.row_groups import RowGroups, opened
from gen.data.lib.streamed import StreamedRows, held_out_counts
from gen.data.lib.table_files import SAVED, loading, table_files
from gen.data.lib.tensors import check_split, content_hash, hold_out
from gen.data.lib.text_rows import Row, RowEncoder, Truncate, Window, pack, parse_line, parse_row, row_columns
from gen.diffusion.noise import derive
from gen.text.contracts import Tokenizer
from gen.text.tokenizers import text_end

__all__ = ["Text"]

TEXTS, TABLES = (".txt", ".md", ".jsonl"), (".parquet", ".arrow")
LINE = ["line", "number"]  # columns of gen.data.lib.row_groups.LinesFile
SAMPLED_GROUPS, SAMPLED_ROWS = 4, 200  # of which the number of packed windows is estimated


@dataclass(frozen=True)
class Text:
    """Windows of `length` tokens of texts, of prompts and responses, or of chats.

    A text ends with the tokenizer's first end-of-text token, and more of them fill its last window; how many of those
    are seen and trained is the objective's business (gen.training.objectives.lib.masked.window_ends), so that nothing
    tells a model how long a text is. A line of JSONL or a row of a table holds "text", or "prompt" and "response", or
    "messages" of role and content (gen.text.chat). A pair is one window, and its prompt is not trained; a chat is a
    pair whose prompt is all up to the assistant's last turn. The same windows are held out always.

    Tables are .parquet and .arrow files, folders that `datasets` saved, "hf://datasets/owner/name", and URLs of folders
    of parquet files; they need gen-diffusion[datasets]. With `streaming` they, and .jsonl files a thousand lines at a
    time, are read by row groups while a run trains (gen.data.huggingface says how), and an item is a row: of a long
    text a random window, of a chat with `turns` every a random response. What is cut is not counted then. With
    `packing` an item is a window of several rows of a group (PackedStream).

    Attributes:
        path: a file, a glob, a folder (all below it that ends in .txt, .md, .jsonl, .parquet or .arrow) or tables; None
            for the 79 pages of pydoc_data.topics, which every Python has.
        tokenizer: a plug-in of gen.text.tokenizers.
        length: tokens of a window, at least 2.
        holdout: the share of the windows, with streaming of each row group, held out for "test", in [0, 1).
        columns: fields that hold a row: one of text or messages, or two, of prompt and response; () for those above.
        turns: "last", or "every" for a pair of each of an assistant's turns and what is before it.
        truncate: what is cut of a pair that is longer than a window: the end of its "response" or the beginning of its
            "prompt"; or "drop" for the whole pair.
        packing: several texts share a window, each by itself (gen.text.documents): they begin at multiples of this,
            which is one of the model's block_size, and are filled up to them; None for one text a window.
        infill: what is given and what is to be filled in, a plug-in of gen.data.lib.infill for texts; None for all of a
            text.
        part: the split of tables that have some.
        streaming: whether tables and .jsonl files are read while a run trains.
        row_groups: with streaming, of how many groups a batch mixes rows.
    """

    path: str | None = None
    tokenizer: Tokenizer = part("text.tokenizers", default="bytes")
    length: int = 128
    holdout: float = 0.05
    columns: tuple[str, ...] = ()
    turns: Literal["last", "every"] = "last"
    truncate: Truncate = "response"
    packing: int | None = None
    infill: Infill | None = part("data.lib.infill", default=None)
    part: str = "train"
    streaming: bool = False
    row_groups: int = 16

    def __post_init__(self) -> None:
        check_fields(self, length="[2, inf)", holdout="[0, 1)", packing="[1, length]", row_groups="[1, 100000]")
        if not self.tokenizer.eos_token_ids:
            raise UserError(f"Text: {type(self.tokenizer).__name__} has no end-of-text token")
        if len(self.columns) > 2:
            raise UserError(f"Text: columns = {list(self.columns)}; one of text or messages, or prompt and response")
        if self.packing is not None and self.infill is not None:
            raise UserError("Text: packing and infill do not go together: give one")
        if self.streaming and (self.truncate == "drop" or self.path is None):
            why = "truncate = drop: a row is an item" if self.path else "no path: it needs tables or .jsonl files"
            raise UserError(f"Text: streaming with {why}")

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

    @property
    def whole(self) -> Text:
        """The same data with one text a window and without gaps, as texts are measured and prompts are taken."""
        return replace(self, packing=None, infill=None)

    def open(self, split: str) -> Windows | StreamedTexts | PackedStream:
        """Open "train" or "test"."""
        check_split(split)
        return self._streamed(split) if self.streaming else self._windows(split)

    def _windows(self, split: str) -> Windows:
        encoder, where = self.encoder(), f"Text({self.path or 'pydoc_data.topics'})"
        found = [window for source, row in self.rows() for window in encoder.windows(row, source)]
        encoder.report(where)
        if not found:
            raise UserError(f"{where} holds no text")
        stop = self.tokenizer.eos_token_ids[0]
        kept = [found[i] for i in hold_out(where, split, len(found), self.holdout)]
        if self.packing is not None:
            columns = pack(kept, self.length, self.packing, stop)
            return Windows(columns, content_hash("packed text", *columns.values()))
        x = torch.full((len(kept), self.length), stop, dtype=torch.int32)
        for row, window in zip(x, kept, strict=True):
            row[: len(window.ids)] = torch.tensor(window.ids, dtype=torch.int32)
        prompt = torch.tensor([window.prompt for window in kept])
        if self.infill is None:
            return Windows({"x": x, "prompt": prompt}, content_hash("text", x, prompt))
        fingerprint = content_hash("infilling", x, digest(spec_of(self.infill)))
        return InfilledWindows({"x": x}, fingerprint, self.infill, self.tokenizer.eos_token_ids)

    def _streamed(self, split: str) -> StreamedTexts | PackedStream:
        with loading(str(self.path)):  # of whose package files of tables are a part
            files = opened(self.paths(), lines=True)
        known = files[0].schema.names
        columns = LINE if known == LINE else row_columns(known, str(self.path), self.columns)
        groups = RowGroups(files, columns)
        held = held_out_counts(groups, split, self.holdout, str(self.path))
        options = {key: value for key, value in spec_of(self).items() if key not in ("path", "row_groups")}
        options["tokenizer"] = {key: value for key, value in options["tokenizer"].items() if key != "file"}
        fingerprint = content_hash("streamed text", split, digest(options), *(file.stamp for file in files))
        texts = StreamedTexts(source=groups, held_out=held, split=split, groups_at_once=self.row_groups,
                              fingerprint=fingerprint, text=self, columns=tuple(columns))  # fmt: skip
        return texts if self.packing is None else PackedStream(texts, self.packing)

    def encoder(self) -> RowEncoder:
        """Return an encoder of its rows."""
        return RowEncoder(self.tokenizer, self.length, self.truncate, self.turns, self.infill is not None)

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Yield where each row is from, and what it holds."""
        if self.path is None:
            from pydoc_data.topics import topics

            yield from ((f"pydoc_data.topics, {name}", Row(topics[name])) for name in sorted(topics))
            return
        for where in self.paths():
            if where.endswith(".jsonl"):
                yield from _lines(Path(where), self.columns)
            elif where.endswith(TABLES):
                yield from self._table_rows(where)
            else:
                yield where, Row(read_text(Path(where)).replace("\r\n", "\n"))

    def _table_rows(self, where: str) -> Iterator[tuple[str, Row]]:
        """Yield the rows of a table, which is read group by group."""
        with loading(where):
            files = opened([where])
        known = files[0].schema.names
        groups = RowGroups(files, [*row_columns(known, where, self.columns), *{"tools"}.intersection(known)])
        for group, count in enumerate(groups.rows.tolist()):
            for row, record in enumerate(groups.table(group).to_pylist()[:count]):
                at = groups.where(group, row)
                yield at, parse_row(record, at, self.columns)

    @property
    def is_table(self) -> bool:
        """Whether `path` is a saved data set or a URL, of which there are no files to look for."""
        path = str(self.path)
        return "://" in path or any((Path(path) / name).is_file() for name in SAVED)

    def paths(self) -> list[str]:
        """The files of `path`, or their URLs; UserError for none."""
        if self.is_table:
            return table_files(str(self.path), self.part)
        return list(map(str, self.text_files()))

    def text_files(self) -> list[Path]:
        """The files of `path`, sorted; UserError where there are none."""
        given = Path(str(self.path))
        if given.is_dir():
            found = [f for f in given.rglob("*") if f.suffix in (*TEXTS, *TABLES)]
        else:
            found = (
                [given]
                if given.is_file()
                else list(Path(given.anchor or ".").glob(str(given.relative_to(given.anchor))))
            )
        found = sorted(f for f in found if f.is_file())
        check_sums(given, dict.fromkeys(found))
        if not found:
            kinds = ", ".join((*TEXTS, *TABLES))
            raise UserError(
                f"Text: no file at {given}; give a file, a glob or a folder of {kinds} files, or "
                "hf://datasets/owner/name for a data set on the hub"
            )
        return found


@dataclass(frozen=True, eq=False)
class Windows:
    """Items {"x": int64 [L], "prompt": int64 0-d}, or with packing {"x", "given": bool [L], "document": int64 [L]}.

    End-of-text tokens fill the rest of a text's last window.
    """

    columns: dict[str, Tensor]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.columns["x"])

    def __getitem__(self, i: int | Tensor) -> dict[str, Tensor]:
        items = {key: column[i] for key, column in self.columns.items()}
        return {key: value if value.dtype == torch.bool else value.long() for key, value in items.items()}

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the items of some rows, stacked."""
        return self[torch.tensor(rows)]


@dataclass(frozen=True, eq=False)
class InfilledWindows(Windows):
    """Items {"x": int64 [L], "given": bool [L], "length": int64 0-d}: windows of texts with gaps, drawn by a key."""

    infill: Infill
    eos_token_ids: tuple[int, ...]

    def __getitem__(self, i: int | Tensor) -> dict[str, Tensor]:
        return self.draw(int(i), int(i))

    def draw(self, i: int, key: int) -> dict[str, Tensor]:
        """Return item i with the gaps of a key.

        Args:
            i: index in [0, len).
            key: equal keys give equal items.
        """
        x = self.columns["x"][i]
        end = max(1, int(text_end(x, self.eos_token_ids)))
        return infilled(x[:end].tolist(), len(x), self.infill, self.eos_token_ids[0], key)


@dataclass(eq=False, kw_only=True)
class StreamedTexts(StreamedRows):
    """Items as of Windows or InfilledWindows, a row of a table each, encoded when it is read."""

    text: Text
    columns: tuple[str, ...]

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self.draw(i, 0)

    def draw(self, i: int, key: int) -> dict[str, Tensor]:
        """Return a window of row i, or of the next in its group that is not empty; with the gaps of a key.

        Args:
            i: index in [0, len).
            key: equal keys give equal items; 0 takes a row's first window.
        """
        text, stop = self.text, self.text.tokenizer.eos_token_ids[0]
        windows = self._windows(i)
        ids, prompt = windows[derive("window", key) % len(windows) if key else 0]
        if text.infill is not None:
            ids = ids[:-1] if ids[-1] == stop and len(ids) > 1 else ids
            return infilled(ids, text.length, text.infill, stop, key or i)
        x = torch.tensor([*ids, *[stop] * (text.length - len(ids))])
        return {"x": x, "prompt": torch.tensor(prompt)}

    def _windows(self, i: int) -> list[Window]:
        group, row = self.at(i)
        rows = self.rows(group)
        start = int(rows.searchsorted(row))
        for other in [*rows[start:], *rows[:start]]:
            if windows := self.windows(group, int(other)):
                return windows
        raise UserError(f"{self.source.where(group, row)}: no row of its group holds text")

    def windows(self, group: int, row: int) -> list[Window]:
        """Return all windows of a row; none of an empty one.

        Args:
            group: its number.
            row: index in it.
        """
        table, where = self.source.table(group), self.source.where(group, row)
        record: dict[str, Any] = {key: table[key][row].as_py() for key in self.columns}
        if [*record] == LINE:
            where = f"{where.partition(', row group')[0]}, line {record['number']}"
            parsed = parse_line(record["line"], where, self.text.columns)
        else:
            parsed = parse_row(record, where, self.text.columns)
        return list(self.text.encoder().windows(parsed, where))


class PackedStream:
    """Items as of Windows with packing, each of several rows of a group of streamed texts.

    A group is packed when its first item is read: its rows in a random order, of a long text a random window. An epoch
    has about as many items of a group as its rows fill windows, estimated from a few rows when the data are opened; of
    windows beyond these an epoch leaves out the last, and where there are fewer the rows are packed anew in another
    order, so that every row is as likely.

    Args:
        texts: the rows.
        multiple: texts begin at multiples of it.

    Attributes:
        groups: items of each group.
        groups_at_once, fingerprint: those of the rows.
    """

    def __init__(self, texts: StreamedTexts, multiple: int) -> None:
        self.texts, self.multiple = texts, multiple
        self.groups_at_once, self.fingerprint = texts.groups_at_once, texts.fingerprint
        ratio = self._windows_per_row()
        self.groups = np.where(texts.groups > 0, np.maximum(1, np.rint(texts.groups * ratio)), 0).astype(np.int64)
        self._ends = np.cumsum(self.groups)
        self._packed = OrderedDict[tuple[int, int], list[Windows]]()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self.draw(i, 0)

    def keep(self, groups: int) -> None:
        """Keep so many groups in memory; see StreamedRows."""
        self.texts.keep(groups)

    def where(self, i: int) -> str:
        """Return the file and the group of item i."""
        return self.texts.source.where(self.drawn_with(i), 0).rpartition(", row ")[0]

    def drawn_with(self, i: int) -> int:
        """Return the group of item i, whose items share a key; see gen.data.DataSet.

        Args:
            i: index in [0, len), or negative from the end.
        """
        return int(np.searchsorted(self._ends, range(len(self))[i], "right"))

    def draw(self, i: int, key: int) -> dict[str, Tensor]:
        """Return item i of a group that is packed by a key.

        Args:
            i: index in [0, len).
            key: equal keys give equal items, and those of one group share out its rows.
        """
        group = self.drawn_with(i)
        k, turn = range(len(self))[i] - int(self._ends[group] - self.groups[group]), 0
        if (group, key) not in self._packed:
            while len(self._packed) >= self.texts.source.kept:
                self._packed.popitem(last=False)
        turns = self._packed.setdefault((group, key), [])
        self._packed.move_to_end((group, key))
        while True:
            if turn == len(turns):
                turns.append(self._pack(group, derive("packing", key, turn)))
            if k < len(turns[turn]):
                return turns[turn][k]
            k, turn = k - len(turns[turn]), turn + 1

    def _pack(self, group: int, key: int) -> Windows:
        """Return the windows of a group."""
        order = self.texts.rows(group).tolist()
        random.Random(key).shuffle(order)
        windows = [w[derive("window", key, row) % len(w)] for row in order if (w := self.texts.windows(group, row))]
        if not windows:
            raise UserError(f"{self.texts.source.where(group, order[0])}: no row of its group holds text")
        return Windows(self._columns(windows), self.fingerprint)

    def _columns(self, windows: Sequence[Window]) -> dict[str, Tensor]:
        return pack(windows, self.texts.text.length, self.multiple, self.texts.text.tokenizer.eos_token_ids[0])

    def _windows_per_row(self) -> float:
        """Return how many windows a row fills, of the first rows of a few groups."""
        windows, rows = 0, 0
        full = np.flatnonzero(self.texts.groups)
        for group in full[np.linspace(0, len(full) - 1, min(len(full), SAMPLED_GROUPS)).astype(int)].tolist():
            some = self.texts.rows(group)[:SAMPLED_ROWS].tolist()
            first = [w[0] for row in some if (w := self.texts.windows(group, row))]
            windows, rows = windows + len(self._columns(first)["x"]), rows + len(some)
        return windows / rows


def _lines(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Yield file and number of every line, and its row."""
    for number, line in enumerate(read_lines(file), 1):
        where = f"{file}, line {number}"
        if line.strip():
            yield where, parse_line(line, where, columns)

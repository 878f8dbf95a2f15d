"""A table of picture files: CSV, TSV or JSON lines with a path and a label or a caption in each row."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from gen.config.errors import UserError, nearest, shown
from gen.config.reading import parse_json, read_lines
from gen.data.lib.archives import Files, PackedWords, is_plain
from gen.data.lib.labels import named_labels
from gen.data.lib.pictures import Contents, PictureSource

__all__ = ["Table"]

COLUMNS = {  # names by which a column is known, in order of preference
    "file": ("path", "file_name", "filename", "file", "image"),
    "label": ("label", "class", "class_name"),
    "caption": ("caption", "text", "prompt"),
}


@dataclass(frozen=True)
class Table(PictureSource):
    """Pictures that a .csv, .tsv or .jsonl file lists, one a row, in its order.

    The first row of a .csv names the columns. Paths are relative to the table's folder, or absolute. Labels are whole
    numbers or names of classes. A column of another name is stated; one of the names that are known (path, file_name,
    filename, file, image; label, class, class_name; caption, text, prompt) need not be. A table may have both label and
    caption, or neither. Fields and reading are those of every source of pictures (gen.data.lib.pictures). Raises
    UserError, in one line with the row's number, for paths that are no file, and for rows without a value.

    Attributes:
        file_column: name of the column of paths; "" for the first known one.
        label_column: of labels; "" for the first known one, or none.
        caption_column: of captions; "" for the first known one, or none.
    """

    file_column: str = ""
    label_column: str = ""
    caption_column: str = ""

    def contents(self, path: Path) -> Contents:
        """List a table's pictures, labels and captions.

        Args:
            path: the table.
        """
        if not path.is_file():
            raise UserError(f"{path} is {'a folder' if path.exists() else 'not there'}; give a .csv, .tsv or .jsonl")
        rows = iter(_rows(path))
        first = next(rows, None)
        if first is None:
            raise UserError(f"{path} holds no rows")
        columns = [self._column(path, what, first[1]) for what in COLUMNS]
        found = [[], [], []]  # type: list[list[Any]]
        stamps, root = [], str(path.parent)
        for number, row in chain([first], rows):
            for values, column in zip(found, columns, strict=True):
                given = row.get(column)
                if column and given in (None, ""):
                    if values is not found[2]:
                        raise UserError(f"{path}, row {number} has no {column}")
                    given = ""  # a caption may be empty
                values.append(given)
            stamps.append(_stamp(path, root, number, found[0][-1]))
        labels, names = None, tuple[str, ...]()
        if columns[1]:
            try:
                labels, names = named_labels(found[1])
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
        archive = Files(root, PackedWords(found[0]), PackedWords(stamps))
        return Contents(archive, labels, names, PackedWords(map(str, found[2])) if columns[2] else None)

    def _column(self, path: Path, what: str, row: dict[str, Any]) -> str:
        stated = getattr(self, f"{what}_column")
        column = stated or next((name for name in COLUMNS[what] if name in row), "")
        if (what == "file" or stated) and column not in row:
            lacks = f"column {stated!r}" if stated else f"column of paths ({', '.join(COLUMNS[what])})"
            raise UserError(f"{path} has no {lacks}. {nearest(stated or 'path', row)}")
        return str(column)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row's number and its values by column."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                row = parse_json(line, f"{path}, line {number}")
                if not isinstance(row, dict):
                    raise UserError(f"{path}, line {number} is {shown(row)}; expected an object such as "
                                    '{"path": "a.png", "label": 3}')  # fmt: skip
                yield number, row
    elif suffix in (".csv", ".tsv"):
        lines = csv.reader((f"{line}\n" for line in read_lines(path)), delimiter="," if suffix == ".csv" else "\t")
        try:
            header = next(lines, [])
            for number, values in enumerate(lines, 2):
                if values and len(values) != len(header):
                    raise UserError(f"{path}, row {number} has {len(values)} values; the first row names {len(header)}")
                if values:
                    yield number, dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise UserError(f"{path} cannot be read: {error}") from error
    else:
        raise UserError(f"{path}: expected a .csv, .tsv or .jsonl file")


def _stamp(path: Path, root: str, number: int, file: object) -> str:
    """Return size and time of change of a row's file, under the folder `root`."""
    if not isinstance(file, str) or not is_plain(file):
        raise UserError(f"{path}, row {number}: {shown(file)} is no path")
    try:
        status = os.stat(os.path.join(root, file))  # noqa: PTH116, PTH118 - a Path costs as much as the call
    except (OSError, ValueError) as error:
        why = f"cannot be read: {getattr(error, 'strerror', error)}"
        raise UserError(f"{path}, row {number}: {shown(file)} {why}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path}, row {number}: {shown(file)} is no file")
    return f"{status.st_size}-{status.st_mtime_ns}"

"""Rows that are read group by group while a run trains: never all on the disk, nor all in memory. Pictures of them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.data.lib.decoding import check_scaled, decode, read_header
from gen.data.lib.pictures import sample_of
from gen.data.lib.row_groups import RowGroups
from gen.diffusion.noise import derive

__all__ = ["StreamedRows", "StreamedSet", "check_rows_left", "held_out_counts", "held_out_rows"]


@dataclass(eq=False, kw_only=True)
class StreamedRows:
    """Base of data sets whose items are the rows of a split, in their order.

    Attributes:
        source: the row groups that are read.
        held_out: rows of each group that are held out, [G].
        split: "train" or "test".
        groups_at_once: of how many groups a batch mixes rows (gen.training.order.GroupOrder).
        fingerprint: sha256 (hex) of what the files' footers say, and of options.
    """

    source: RowGroups
    held_out: np.ndarray
    split: str
    groups_at_once: int
    fingerprint: str
    _rows: OrderedDict[int, np.ndarray] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        sizes = self.held_out if self.split == "test" else self.source.rows - self.held_out
        self.groups = np.tile(sizes, self.copies)  # items of each group, those of the next copy after them
        self._ends = np.cumsum(sizes)

    @property
    def copies(self) -> int:
        """How often every row is an item."""
        return 1

    def keep(self, groups: int) -> None:
        """Keep so many groups in memory, of those that were read last; one before this is called.

        Args:
            groups: at least 1.
        """
        self.source.kept = groups

    def __len__(self) -> int:
        return int(self.groups.sum())

    def where(self, i: int) -> str:
        """Return file, group and row of item i."""
        return self.source.where(*self.at(i))

    def at(self, i: int) -> tuple[int, int]:
        """Return the group of item i, and the row in it.

        Args:
            i: index in [0, len), or negative from the end.
        """
        i = range(len(self))[i] % int(self._ends[-1])  # as a list has it: negative from the end, IndexError past it
        group = int(np.searchsorted(self._ends, i, "right"))
        return group, int(self.rows(group)[i - (self._ends[group - 1] if group else 0)])

    def rows(self, group: int) -> np.ndarray:
        """Return the rows of a group that are of the split, ascending.

        Args:
            group: its number.
        """
        if group not in self._rows:
            while len(self._rows) >= self.source.kept:
                self._rows.popitem(last=False)
            held = held_out_rows(int(self.source.starts[group]), int(self.source.rows[group]), self.held_out[group])
            self._rows[group] = np.flatnonzero(held == (self.split == "test"))
        return self._rows[group]


@dataclass(eq=False, kw_only=True)
class StreamedSet(StreamedRows):
    """Items {"x": float32 [C, H, W] in [-1, 1], "y": int64 0-d}; with flip "double", all again, mirrored.

    Attributes:
        columns: of pictures, labels and captions; None for none.
        shape: (C, H, W) of an item.
        classes: number of labels; 0 without.
        background, crop, flip: as of PictureSource.
    """

    columns: tuple[str, str | None, str | None]
    shape: tuple[int, int, int]
    classes: int
    background: int
    crop: str
    flip: str

    @property
    def copies(self) -> int:
        """How often every row is an item."""
        return 2 if self.flip == "double" else 1

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self._item(i, None)

    def draw(self, i: int, key: int) -> dict[str, Tensor]:
        """Return item i under the random crop and the coin of a key.

        Args:
            i: index in [0, len).
            key: equal keys give equal items.
        """
        return self._item(i, key)

    def caption(self, i: int) -> str | None:
        """Return the text of item i, None if pictures have none; its row group is read.

        Args:
            i: index in [0, len).
        """
        (group, row), column = self.at(i), self.columns[2]
        return None if column is None else str(self.source.table(group)[column][row].as_py() or "")

    def _item(self, i: int, key: int | None) -> dict[str, Tensor]:
        (group, row), (picture, label, _) = self.at(i), self.columns
        table, where = self.source.table(group), self.source.where(group, row)
        given = table[picture][row].as_py()
        data = given.get("bytes") if isinstance(given, dict) else given
        if not isinstance(data, bytes):
            raise UserError(f"{where} has no picture in {picture}: streaming needs their bytes in the table")
        header = read_header(where, data)
        check_scaled(where, header.width, header.height, max(self.shape[1:]))
        image = decode(where, data, self.shape[0], self.background)
        mirrored = i % len(self) >= self._ends[-1]
        x = sample_of(image, self.shape, self.crop, self.flip, key, mirrored)
        return {"x": x} if label is None else {"x": x, "y": self._label(table[label][row].as_py(), where)}

    def _label(self, value: Any, where: str) -> Tensor:
        if type(value) is not int or not 0 <= value < self.classes:
            raise UserError(f"{where} has the label {value}; allowed: 0 to {self.classes - 1}")
        return torch.tensor(value)


def held_out_counts(source: RowGroups, split: str, holdout: float, where: str) -> np.ndarray:
    """Return how many rows of each group are held out: the same share of each, at least one in all, 0 for a share of 0.

    Args:
        source: the row groups.
        split: "train" or "test".
        holdout: the share of "test", in [0, 1).
        where: names the data, for the message.

    Raises:
        UserError: if no row is left for the split.
    """
    n = len(source)
    held = np.diff(source.starts * (max(1, round(n * holdout)) if holdout else 0) // n) if n else source.rows
    check_rows_left(n, held, split, holdout, where)
    return held


def check_rows_left(n: int, held_out: np.ndarray, split: str, holdout: float, where: str) -> None:
    """Raise UserError if a split has no row.

    Args:
        n: number of rows.
        held_out: rows of each group that are held out, [G].
        split, holdout, where: see `held_out_counts`.
    """
    if not (count := int(held_out.sum()) if split == "test" else n - int(held_out.sum())):
        raise UserError(f"{where}: {count} of {n} rows are left for {split!r}; holdout = {holdout}")


def held_out_rows(start: int, rows: int, count: int) -> np.ndarray:
    """Return which rows of a group are held out, bool [rows]: those of the lowest derive("holdout", number).

    Args:
        start: number of its first row, over all groups.
        rows: of the group.
        count: how many are held out.
    """
    held = np.zeros(rows, bool)
    if count:
        held[sorted(range(rows), key=lambda row: derive("holdout", start + row))[:count]] = True
    return held

"""Pictures that are read row group by row group while a run trains: never all on the disk, nor all in memory."""

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

__all__ = ["StreamedSet", "held_out_rows"]


@dataclass(eq=False)
class StreamedSet:
    """Items {"x": float32 [C, H, W] in [-1, 1], "y": int64 0-d}; with flip "double", all again, mirrored.

    Attributes:
        source: the row groups that are read.
        columns: of pictures, labels and captions; None for none.
        held_out: rows of each group that are held out, [G].
        split: "train" or "test".
        shape: (C, H, W) of an item.
        classes: number of labels; 0 without.
        background, crop, flip: as of PictureSource.
        groups_at_once: of how many groups a batch mixes rows (gen.training.order.GroupOrder).
        fingerprint: sha256 (hex) of what the files' footers say, and of options.
    """

    source: RowGroups
    columns: tuple[str, str | None, str | None]
    held_out: np.ndarray
    split: str
    shape: tuple[int, int, int]
    classes: int
    background: int
    crop: str
    flip: str
    groups_at_once: int
    fingerprint: str
    _rows: OrderedDict[int, np.ndarray] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        sizes = self.held_out if self.split == "test" else self.source.rows - self.held_out
        self.groups = np.tile(sizes, 2 if self.flip == "double" else 1)  # items of each group, mirrored ones last
        self._ends = np.cumsum(sizes)

    def keep(self, groups: int) -> None:
        """Keep so many groups in memory, of those that were read last; one before this is called.

        Args:
            groups: at least 1.
        """
        self.source.kept = groups

    def __len__(self) -> int:
        return int(self.groups.sum())

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self._item(i, None)

    def draw(self, i: int, key: int) -> dict[str, Tensor]:
        """Return item i under the random crop and the coin of a key.

        Args:
            i: index in [0, len).
            key: equal keys give equal items.
        """
        return self._item(i, key)

    def where(self, i: int) -> str:
        """Return file, group and row of item i."""
        return self.source.where(*self._at(i))

    def caption(self, i: int) -> str | None:
        """Return the text of item i, None if pictures have none; its row group is read.

        Args:
            i: index in [0, len).
        """
        (group, row), column = self._at(i), self.columns[2]
        return None if column is None else str(self.source.table(group)[column][row].as_py() or "")

    def _at(self, i: int) -> tuple[int, int]:
        """Return the group of item i, and the row in it."""
        i = range(len(self))[i] % int(self._ends[-1])  # as a list has it: negative from the end, IndexError past it
        group = int(np.searchsorted(self._ends, i, "right"))
        if group not in self._rows:
            while len(self._rows) >= self.source.kept:
                self._rows.popitem(last=False)
            held = held_out_rows(int(self.source.starts[group]), int(self.source.rows[group]), self.held_out[group])
            self._rows[group] = np.flatnonzero(held == (self.split == "test"))
        return group, int(self._rows[group][i - (self._ends[group - 1] if group else 0)])

    def _item(self, i: int, key: int | None) -> dict[str, Tensor]:
        (group, row), (picture, label, _) = self._at(i), self.columns
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

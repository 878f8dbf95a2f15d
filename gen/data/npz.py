"""Images in one .npz file, in the layout of the ADM evaluation suite (Dhariwal & Nichol 2021)."""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.data.lib.checksums import check_sums
from gen.data.lib.tensors import Tensors, check_labels, content_hash, hold_out

__all__ = ["Npz"]

SINGLE = b"\x93NUMPY"  # how an .npy file begins
LARGE = 64 * 2**20  # bytes, from which on the density of an entry is looked at
DENSEST = 200  # packed bytes stand for so many at most; pictures reach 20, zeros 1032


@dataclass(frozen=True)
class Npz:
    """A file with `arr_0`, uint8 [N, H, W, C], C = 1 or 3, and optionally `arr_1`, integer labels [N]; held in memory.

    Bytes 0..255 become [-1, 1] (x / 127.5 - 1). Nothing is unpickled. Other arrays, such as the statistics mu and sigma
    of ADM's reference files, which hold for ADM's extractor alone, are left out with a warning.
    Fingerprint: the split's bytes and labels. A SHA256SUMS beside the file that lists it is compared.
    Raises UserError, in one line, for a file that is missing, broken or laid out differently, and for labels outside.

    Attributes:
        path: the file.
        holdout: the share held out for "test", in [0, 1).
        num_classes: number of labels; None for the highest label + 1.
    """

    path: str
    holdout: float = 0.1
    num_classes: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, holdout="[0, 1)", num_classes="[0, inf)")

    @property
    def shape(self) -> tuple[int, int, int]:
        _, h, w, c = self._layout
        return (c, h, w)

    @property
    def classes(self) -> int:
        return 0 if self._labels is None else check_labels(f"{self.path}: arr_1", self._labels, self.num_classes)

    def open(self, split: str) -> Tensors:
        """Open "train" or "test"."""
        check_sums(Path(self.path), {Path(self.path): None})
        n = self._layout[0]
        y = None if self.classes == 0 else self._labels
        rows = hold_out(self.path, split, n, self.holdout, None if y is None else y.tolist())
        with self._file() as arrays:
            x = torch.from_numpy(arrays["arr_0"])[rows]  # [n, H, W, C]
            if others := ", ".join(sorted({*arrays} - {"arr_0", "arr_1"})):
                warnings.warn(f"{self.path}: {others} left out: pictures and labels alone are read", stacklevel=2)
        y = None if y is None else y[rows]
        fingerprint = content_hash("npz", x, *([] if y is None else [y]))
        return Tensors(x.permute(0, 3, 1, 2), y, fingerprint, shift=127.5, scale=1 / 127.5)

    @cached_property
    def _layout(self) -> tuple[int, ...]:
        """The shape of arr_0, from its header."""
        with self._file() as arrays:
            if "arr_0" not in arrays:
                raise UserError(f"{self.path} has no arr_0; it has {', '.join(arrays) or 'nothing'}")
            with zipfile.ZipFile(self.path) as archive:
                shape, dtype, _ = _header(archive, "arr_0.npy")
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
            raise UserError(f"{self.path}: arr_0 is {dtype} {list(shape)}; allowed: uint8 [N, H, W, C], C = 1 or 3")
        return shape

    @cached_property
    def _labels(self) -> Tensor | None:
        with self._file() as arrays:
            if "arr_1" not in arrays:
                if self.num_classes is not None:
                    raise UserError(f"{self.path} has no labels (arr_1), but num_classes is {self.num_classes}")
                return None
            labels = arrays["arr_1"]
        if labels.shape != self._layout[:1] or labels.dtype.kind not in "iu":
            given = f"{labels.dtype} {list(labels.shape)}"
            raise UserError(f"{self.path}: arr_1 is {given}; allowed: integers [{self._layout[0]}], one for each image")
        return torch.from_numpy(labels.astype(np.int64))

    @contextmanager
    def _file(self) -> Iterator[np.lib.npyio.NpzFile]:
        if not Path(self.path).is_file():
            raise UserError(f"no such file: {self.path}")
        try:
            with Path(self.path).open("rb") as stream:
                if stream.read(len(SINGLE)) == SINGLE:
                    raise UserError(f"{self.path} is a single array, not an .npz file with arr_0")
                _check_sizes(self.path)
                stream.seek(0)
                arrays: np.lib.npyio.NpzFile = np.load(stream, allow_pickle=False)
                with arrays:
                    yield arrays
        except UserError:
            raise
        except Exception as error:  # broken archives raise anything
            raise UserError(f"{self.path} cannot be read as .npz: {' '.join(str(error).split())}") from error


def _check_sizes(path: str) -> None:
    """Refuse, before any array is read, sizes that are not those of the content, or that no memory holds."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            packed = entry.file_size > LARGE and entry.file_size > DENSEST * entry.compress_size
            if packed or entry.file_size > memory:
                raise UserError(
                    f"{path}: {entry.filename} has {entry.file_size:,} bytes, packed in {entry.compress_size:,}; "
                    f"refused: at most {memory:,} are read, and packed {DENSEST} times"
                )
            if entry.filename.endswith(".npy"):
                shape, dtype, start = _header(archive, entry.filename)
                expected = start + math.prod(shape) * dtype.itemsize
                if expected != entry.file_size and not dtype.hasobject:
                    raise UserError(
                        f"{path}: {entry.filename} says {dtype} {list(shape)}, which takes {expected:,} bytes, and has "
                        f"{entry.file_size:,}"
                    )


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape, dtype and the offset of the values of an array in the file, without reading the array."""
    with archive.open(name) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        return shape, dtype, stream.tell()

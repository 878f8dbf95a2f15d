"""Pictures in .npz, .npy and safetensors files, read by range: a file is never in memory as a whole."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.reading import file_sha256
from gen.data.lib.tensors import check_labels
from gen.eval.image_sets import FLOATS, Images, no_pictures

__all__ = ["ArrayImages", "NpyRows", "array_names", "open_array"]

CHANNELS = (1, 3)
LABELS = ("arr_1", "labels", "y")
PICTURES = ("arr_0", "images", "samples", "x")
PIECE = 2**22  # bytes that are skipped at a time


class NpyRows:
    """Rows of one array, in an .npy file or a member of an .npz file.

    Members that are stored, as numpy.savez stores them, and .npy files are memory-mapped; packed ones are read as a
    stream, which goes back to the start where rows before the last ones are asked for.

    Args:
        path: the file.
        member: name of the array in it; None for an .npy file.

    Raises:
        UserError: for what is no such array, and for one whose size is not the one that its header states.
    """

    def __init__(self, path: Path, member: str | None = None) -> None:
        self.path, self._member = path, member and f"{member}.npy"
        self._stream: IO[bytes] | None = None
        self._at = 0
        self._mapped: np.ndarray | None = None
        with self._opened() as stream:
            self.shape, self.dtype, self._start = _header(stream)
        self._row = math.prod(self.shape[1:]) * self.dtype.itemsize
        begin, size = self._place()
        expected = self._start + math.prod(self.shape) * self.dtype.itemsize
        if size != expected:
            raise UserError(f"{self._label}: {size:,} bytes, {expected:,} expected for {self.dtype} {list(self.shape)}")
        if begin is not None and len(self):
            self._mapped = np.memmap(path, self.dtype, "r", begin + self._start, self.shape)

    def __len__(self) -> int:
        return self.shape[0] if self.shape else 0

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Return rows, ascending, [B, ...]."""
        if self._mapped is not None:
            return np.concatenate([self._mapped[a:b] for a, b in _spans(rows)])
        return np.concatenate([np.frombuffer(self._bytes(i), self.dtype) for i in rows]).reshape(-1, *self.shape[1:])

    def _bytes(self, i: int) -> bytes:
        if self._stream is None or i < self._at:
            if self._stream is not None:
                self._stream.close()
            self._stream, self._at = self._opened(), 0
            self._skip(self._start)
        self._skip((i - self._at) * self._row)
        self._at = i + 1
        assert self._stream is not None
        return self._read(self._row)

    def _skip(self, size: int) -> None:
        for done in range(0, size, PIECE):
            self._read(min(PIECE, size - done))

    def _read(self, size: int) -> bytes:
        assert self._stream is not None
        try:
            data = self._stream.read(size)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise UserError(f"{self._label} is damaged: {error}") from error
        if len(data) < size:
            raise UserError(f"{self._label} ends too early")
        return data

    def _opened(self) -> IO[bytes]:
        if self._member is None:
            return self.path.open("rb")
        return zipfile.ZipFile(self.path).open(self._member)

    def _place(self) -> tuple[int | None, int]:
        """Return where the array begins in the file, None if it is packed, and its size in bytes."""
        if self._member is None:
            return 0, self.path.stat().st_size
        with zipfile.ZipFile(self.path) as archive:
            entry = archive.getinfo(self._member)
        if entry.compress_type != zipfile.ZIP_STORED:
            return None, entry.file_size
        with self.path.open("rb") as file:
            file.seek(entry.header_offset + 26)
            name, extra = struct.unpack("<HH", file.read(4))
        return entry.header_offset + 30 + name + extra, entry.file_size

    @property
    def _label(self) -> str:
        return f"{self.path}: {self._member}" if self._member else str(self.path)


class ArrayImages(Images):
    """Pictures of one array, and labels of another.

    Args:
        kind: of file.
        path: the file.
        rows: of the pictures; `read`, `shape` and `dtype`.
        labels: int64 [N], or None.
    """

    format = "uint8 array"

    def __init__(self, kind: str, path: Path, rows: Any, labels: Tensor | None) -> None:
        self.kind, self._array, self.labels, self.name = kind, rows, labels, path.name
        shape = tuple(rows.shape)
        last = len(shape) in (4, 5) and shape[-1] in CHANNELS
        first = len(shape) in (4, 5) and shape[1] in CHANNELS
        self._first = first and (kind == "safetensors" or (kind == "npy" and not last))
        if str(rows.dtype) not in ("uint8", "U8") or not (self._first or last) or 0 in shape:
            layouts = "uint8 [N, H, W, C]" + ("" if kind == "npz" else " or [N, C, H, W]")
            hint = f". {FLOATS}" if str(rows.dtype).lower().startswith(("f", "bf")) else ""
            raise UserError(f"{path}: pictures are {rows.dtype} {list(shape)}; allowed: {layouts}, C = 1 or 3{hint}")
        self.shape = shape[1:] if self._first else (shape[-1], *shape[1:-1])
        if labels is not None and labels.shape != shape[:1]:
            raise UserError(f"{path}: {len(labels)} labels for {shape[0]} pictures")
        if labels is not None:
            check_labels(str(path), labels, None)
        self.fingerprint = file_sha256(path)

    def __len__(self) -> int:
        return int(self._array.shape[0])

    def read(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Read pictures."""
        x = torch.as_tensor(self._array.read(rows))
        return {"images": x if self._first else x.movedim(-1, 1).contiguous()}


def open_array(path: Path, labelled: bool = True) -> ArrayImages:
    """Open the pictures of an .npz file (arr_0 and, for labels, arr_1), of an .npy or of a safetensors file.

    Args:
        path: the file.
        labelled: False leaves out the labels.

    Raises:
        UserError: for what is none of these, or holds no pictures.
    """
    kind = path.suffix.removeprefix(".")
    if not path.stat().st_size:
        raise no_pictures(path)
    if kind == "npy":
        return ArrayImages(kind, path, NpyRows(path), None)
    if kind == "safetensors":
        return _safetensors(path, labelled)
    names = array_names(path)
    if "arr_0" not in names:
        raise UserError(f"{path} has no arr_0; it has {', '.join(names) or 'nothing'}")
    labels = NpyRows(path, "arr_1") if "arr_1" in names and labelled else None
    if labels is not None and (labels.dtype.kind not in "iu" or len(labels.shape) != 1):
        raise UserError(f"{path}: arr_1 is {labels.dtype} {list(labels.shape)}; allowed: integers [N]")
    values = None if labels is None else torch.from_numpy(labels.read(range(len(labels))).astype(np.int64))
    return ArrayImages(kind, path, NpyRows(path, "arr_0"), values)


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays of an .npz file.

    Args:
        path: the file; UserError says what it is if it is none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except zipfile.BadZipFile as error:
        raise no_pictures(path) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read as .npz: {error}") from error


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Return shape and dtype of an array, and where its values begin."""
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
        if fortran and len(shape) > 1:
            raise ValueError("its order of axes is Fortran's: save it by numpy.ascontiguousarray")
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are never read")
        return shape, dtype, stream.tell()
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{getattr(stream, 'name', 'array')}: {' '.join(str(error).split())}") from error


class _Slices:
    """A tensor of a safetensors file, read by rows."""

    def __init__(self, path: Path, name: str) -> None:
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            part = file.get_slice(name)
            self.shape, self.dtype = part.get_shape(), part.get_dtype()
        self._path, self._name = path, name

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return rows, ascending."""
        from safetensors import safe_open

        with safe_open(self._path, "pt") as file:
            part = file.get_slice(self._name)
            return torch.cat([part[a:b] for a, b in _spans(rows)])


def _spans(rows: Iterable[int]) -> list[tuple[int, int]]:
    """Return runs of consecutive indices as (begin, end)."""
    spans: list[tuple[int, int]] = []
    for i in rows:
        if spans and spans[-1][1] == i:
            spans[-1] = (spans[-1][0], i + 1)
        else:
            spans.append((i, i + 1))
    return spans


def _safetensors(path: Path, labelled: bool) -> ArrayImages:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in list(file.keys())}
            shapes = {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}
            known = [name for name in LABELS if name in shapes and len(shapes[name][1]) == 1] if labelled else []
            labels = {name: file.get_tensor(name) for name in known}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {' '.join(str(error).split())}") from error
    several = [name for name, (dtype, shape) in shapes.items() if dtype == "U8" and len(shape) in (4, 5)]
    for kind, found in (("pictures", several), ("labels", known)):
        if len(found) > 1:
            raise UserError(f"{path} holds {' and '.join(found)}, each of which may be its {kind}: save it with one")
    others = [name for name in shapes if name not in known]
    name = next((name for name in (*several, *PICTURES) if name in others), others[0] if len(others) == 1 else None)
    if name is None:
        raise UserError(f"{path} holds {', '.join(shapes) or 'nothing'}; pictures are named {', '.join(PICTURES)}")
    for label, values in labels.items():
        if values.is_floating_point() or values.is_complex():
            raise UserError(f"{path}: {label} is {shapes[label][0]}; allowed: integers [N]")
    return ArrayImages("safetensors", path, _Slices(path, name), labels[known[0]].long() if known else None)

"""Archives: pictures by row, each with a name and a way to read its bytes, wherever they lie."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from gen.config.errors import UserError, counted

__all__ = ["Archive", "Files", "PackedWords", "Spans", "is_plain", "left_out", "listed"]

MAX_BYTES = 2**28  # of one picture's file
LOCAL_HEADER = 30  # bytes of a zip entry's own header, before its name


class Archive(Protocol):
    """Pictures of one source, by row. It can be pickled, and read by several processes and threads at once.

    Attributes:
        names: of the pictures, each as it stands in the source.
        stamps: a word for each that changes with its bytes, as far as can be seen without reading them.
    """

    @property
    def names(self) -> Sequence[str]:
        """The pictures' names."""
        ...

    @property
    def stamps(self) -> Sequence[str]:
        """A word for each that changes with its bytes."""
        ...

    def read(self, row: int) -> bytes:
        """Return the bytes of a picture's file.

        Args:
            row: index in `names`.

        Raises:
            UserError: names what cannot be read.
        """
        ...

    def where(self, row: int) -> str:
        """Return where a picture lies, for messages.

        Args:
            row: index in `names`.
        """
        ...


class PackedWords(Sequence[str]):
    """A sequence of words in one block of bytes: a million cost what they hold, and workers share them.

    Args:
        words: of any length, in any script.
    """

    def __init__(self, words: Iterable[str]) -> None:
        parts = [word.encode("utf-8", "surrogateescape") for word in words]
        self._ends = np.cumsum([0, *map(len, parts)])
        self._bytes = b"".join(parts)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:  # type: ignore[override]
        i = range(len(self))[i]
        return self._bytes[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Files:
    """Picture files under a folder.

    Attributes:
        root: the folder; "" if the names are whole paths.
        names: the files' paths under it.
        stamps: size and time of change of each.
    """

    root: str
    names: Sequence[str]
    stamps: Sequence[str]

    def read(self, row: int) -> bytes:
        """Read a file."""
        path = self.where(row)
        try:
            with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - a Path costs as much as opening
                return stream.read()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error

    def where(self, row: int) -> str:
        """Return a file's path."""
        return os.path.join(self.root, self.names[row])  # noqa: PTH118


@dataclass(frozen=True)
class Spans:
    """Pictures that are ranges of bytes in a few large files: in zip archives, plain or deflated, and in tar files.

    Attributes:
        files: the paths of the large files.
        names: of the pictures.
        stamps: see `Archive`.
        file: index in files of each picture.
        start: of its bytes; in a zip of its local header.
        length: of the bytes in the large file.
        size: of the picture's file, if it is deflated; 0 if not.
        zipped: whether the files are zip archives.
    """

    files: list[str]
    names: Sequence[str]
    stamps: Sequence[str]
    file: np.ndarray
    start: np.ndarray
    length: np.ndarray
    size: np.ndarray
    zipped: bool

    def read(self, row: int) -> bytes:
        """Read a range, and inflate it."""
        file, start, length, size = (int(column[row]) for column in (self.file, self.start, self.length, self.size))
        try:
            with open(self.files[file], "rb", buffering=0) as stream:  # noqa: PTH123 - a Path costs as much as opening
                if self.zipped:
                    header = os.pread(stream.fileno(), LOCAL_HEADER, start)
                    start += LOCAL_HEADER + sum(struct.unpack("<HH", header[26:30]))  # lengths of its name and extras
                data = os.pread(stream.fileno(), length, start)
            if size:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except (OSError, zlib.error, struct.error) as error:
            raise UserError(f"{self.where(row)} cannot be read: {getattr(error, 'strerror', error)}") from error
        if len(data) != (size or length):
            raise UserError(f"{self.where(row)} cannot be read: the file is cut off or damaged there")
        return data

    def where(self, row: int) -> str:
        """Return the large file and the picture in it."""
        return f"{self.files[self.file[row]]}: {self.names[row]}"


def left_out(others: int, hidden: int, first: str = "") -> str:
    """Return in words which files of a source are no pictures; "" for none.

    Args:
        others: files of other kinds.
        hidden: hidden files.
        first: the name of one of them, if it is known.
    """
    kinds = (
        counted(others, "file of another kind", "files of other kinds"),
        counted(hidden, "hidden file", "hidden files"),
    )
    return " and ".join(filter(None, kinds)) + (f", such as {first!a}" if first else "")


def listed(root: Path) -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield the path under a folder of every file, to any depth and through links, in order of name, with its status.

    Args:
        root: the folder. The status of a broken link is None.

    Raises:
        UserError: for what cannot be listed, and for a link to a folder that it lies in.
    """

    def inside(folder: str, prefix: str) -> Iterator[tuple[str, os.stat_result | None]]:
        try:
            with os.scandir(folder) as entries:
                ordered = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{error.filename!a} cannot be read: {error.strerror}") from error
        for entry in ordered:
            if entry.is_dir():
                if entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve()):
                    raise UserError(f"{entry.path!a} links to a folder that it lies in: remove the link")
                yield from inside(entry.path, f"{prefix}{entry.name}/")
            else:
                try:
                    status = entry.stat()
                except OSError:
                    status = None
                yield prefix + entry.name, status

    return inside(str(root), "")


def is_plain(text: str) -> bool:
    """Return whether a name is UTF-8 and has no control characters.

    Args:
        text: the name.
    """
    import unicodedata

    return text.isprintable() or not any(unicodedata.category(c) in ("Cc", "Cs") for c in text)

"""The index of a source's pictures: what was seen when each was read, so that opening it again reads no picture.

A CacheFile with a line for each picture: stamp, length, sha256, width, height, grey, decoded, name. A picture whose
stamp (size and time of change) is another is read anew. Whoever reads a picture compares its sha256, and removes the
index if it is another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from gen.data.lib.archives import Archive
from gen.data.lib.cache_file import CacheFile
from gen.data.lib.decoding import Unreadable, decode, read_header

__all__ = ["Facts", "inspect"]

SMALLEST = 1000  # pictures from which on an index pays
CHUNK, SAVE_EVERY = 1024, 64  # pictures that wait for each other, and chunks between two writings of the index
DECODED = 6  # word of a line
NOTHING = f"- 0 {'0' * 64} 0 0 0 0 -"  # line of a picture that cannot be decoded


@dataclass(frozen=True)
class Facts:
    """Facts about pictures by row, read once; of those that cannot be decoded a width of 0.

    Attributes:
        digests: sha256 of each file, 32 bytes each.
        lengths: of the files, bytes.
        widths, heights: as they are shown, pixels.
        grey: whether a picture has no colour.
    """

    digests: bytes
    lengths: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    grey: np.ndarray

    def digest(self, row: int) -> bytes:
        """Return a picture's sha256."""
        return self.digests[32 * row : 32 * row + 32]


def inspect(archive: Archive, index: CacheFile, skip_corrupt: bool = False) -> Facts:
    """Return the facts about all pictures, from the index as far as it has them.

    Args:
        archive: the pictures.
        index: read and brought up to date if there are many.
        skip_corrupt: True also decodes every picture once, and gives those that cannot be decoded no size.

    Raises:
        UserError: names the first picture that is refused or, unless skip_corrupt, cannot be decoded.
    """
    if len(archive.names) < SMALLEST:
        return _facts([_look(archive, row, skip_corrupt) for row in range(len(archive.names))])
    with index.alone():
        known = {line.split(" ", 7)[7]: line for line in index.read()}
        lines = [known.get(name, "") for name in archive.names]
        missing = [
            row
            for row, (line, stamp) in enumerate(zip(lines, archive.stamps, strict=True))
            if not line.startswith(f"{stamp} ") or (skip_corrupt and line.split(" ", 7)[DECODED] == "0")
        ]
        if missing:
            _fill(archive, index, lines, missing, skip_corrupt)
    return _facts(lines)


def _fill(archive: Archive, index: CacheFile, lines: list[str], missing: list[int], skip_corrupt: bool) -> None:
    """Read the missing pictures on several threads, and write the index now and then, and whatever ends this."""
    from gen.training.log import ProgressBar

    bar = ProgressBar("reading the pictures once", len(missing))
    for row in missing:
        lines[row] = ""
    with ThreadPoolExecutor() as pool:
        try:
            for start in range(0, len(missing), CHUNK):
                rows = missing[start : start + CHUNK]
                for row, line in zip(rows, pool.map(lambda row: _look(archive, row, skip_corrupt), rows), strict=True):
                    lines[row] = line
                    bar.advance()
                if (start // CHUNK) % SAVE_EVERY == SAVE_EVERY - 1:
                    index.write(lines)
        finally:
            index.write(lines)
            bar.close()


def _look(archive: Archive, row: int, skip_corrupt: bool) -> str:
    """Read a picture, and return its line; "" for one that cannot be decoded and is skipped."""
    data = archive.read(row)
    try:
        header = read_header(archive.where(row), data)
        if skip_corrupt:
            decode(archive.where(row), data)
    except Unreadable:
        if not skip_corrupt:
            raise
        return ""
    sha256 = hashlib.sha256(data).hexdigest()
    shape = f"{header.width} {header.height} {header.grey:d}"
    return f"{archive.stamps[row]} {len(data)} {sha256} {shape} {skip_corrupt:d} {archive.names[row]}"


def _facts(lines: Sequence[str]) -> Facts:
    words = [(line or NOTHING).split(" ", 7) for line in lines]
    numbers = np.array([[int(line[k]) for k in (1, 3, 4, 5)] for line in words], dtype=np.int64).reshape(-1, 4)
    lengths, widths, heights, grey = numbers.T
    return Facts(b"".join(bytes.fromhex(line[2]) for line in words), lengths, widths, heights, grey.astype(bool))

"""Lines of text that are remembered between openings of data: files in the user's cache folder, never among the data.

A file's first line is the sha256 of the rest: one that is damaged counts as not there. Each is written to another name
and then renamed, so a kill leaves the old one. The folder may be removed at any time.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gen.config.machine import cache_folder
from gen.config.writing import replacing

__all__ = ["CacheFile"]

FIRST = "gen data 1 "  # and the format's number


class CacheFile:
    """A file of lines, in the folder gen/data of XDG_CACHE_HOME or else of ~/.cache.

    Args:
        kind: of what is remembered.
        path: what it is about; the same under any relative name.
    """

    def __init__(self, kind: str, path: str) -> None:
        about = f"{kind} {Path(path).resolve()}".encode("utf-8", "surrogateescape")
        self.file = cache_folder("data") / f"{hashlib.sha256(about).hexdigest()[:32]}.txt"

    def read(self) -> list[str]:
        """Return the lines; none of a file that is damaged or not there."""
        try:
            first, _, rest = self.file.read_bytes().partition(b"\n")
        except OSError:
            return []
        if first.decode(errors="replace") != FIRST + hashlib.sha256(rest).hexdigest():
            return []
        return rest.decode().split("\n")[:-1]

    def write(self, lines: Sequence[str]) -> None:
        """Replace the file in one step; a cache folder that cannot be written is a warning.

        Args:
            lines: without line ends; empty ones are left out.
        """
        rest = "".join(f"{line}\n" for line in lines if line).encode()
        try:
            with replacing(self.file) as partial:
                partial.write_bytes(f"{FIRST}{hashlib.sha256(rest).hexdigest()}\n".encode() + rest)
        except OSError as error:
            warnings.warn(f"nothing is remembered, so every opening reads all pictures: {error}", stacklevel=2)

    def remove(self) -> None:
        """Forget everything."""
        with suppress(OSError):
            self.file.unlink(missing_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process builds this index; the system ends the wait if that one is killed."""
        try:
            import fcntl

            self.file.parent.mkdir(parents=True, exist_ok=True)
            stream = self.file.with_suffix(".lock").open("a")
        except (ImportError, OSError):  # each builds its own: the last one's stays
            yield
            return
        with stream:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

"""Writing files that are whole or not there, whenever the process is killed; and one writer at a time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

from gen.config.errors import UserError

__all__ = ["Lock", "is_alive", "name_whole", "partial_name", "replacing", "sweep", "sync", "write_json", "write_text"]

_PARTIAL = re.compile(r"\.(partial|aside)-(\d+)@(\w+)-(.+)")
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_STALE = 3600.0  # seconds after which what another host left half written counts as left behind


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside another to write to; it is synced and takes the other's name when the block ends well.

    Args:
        path: the file that is to be written, or a new folder; the folder it is in is created. What is yielded has the
            same suffix, and is not there yet.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"{error.filename} is a file: {path} cannot be written") from None
    for left in path.parent.glob(f".partial-*-{path.name}"):
        _sweep_one(left)
    partial = path.with_name(partial_name(path.name))
    try:
        yield partial
        for written in (partial, *partial.rglob("*")):
            sync(written)
        partial.replace(path)
    except OSError as error:
        name_whole(error, path, partial)
        raise
    finally:
        _remove(partial)


def name_whole(error: OSError, path: Path, partial: Path) -> None:
    """Let an error of the file system name what was to be written: a user knows no other name.

    Args:
        error: raised while it was written.
        path: the whole.
        partial: the same while it is written.
    """
    for attribute in ("filename", "filename2"):
        if isinstance(given := getattr(error, attribute), (str, Path)):
            setattr(error, attribute, str(given).replace(partial.name, path.name))


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, replacing it in one step.

    Args:
        path: the file; its folder is created.
        text: all of its content.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write strict JSON, replacing the file in one step.

    Args:
        path: the file; its folder is created.
        value: JSON values; NaN and infinity are refused.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Wait until a file, or a folder's entries, are on the disk.

    Args:
        path: the file or folder.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def partial_name(name: str, kind: Literal["partial", "aside"] = "partial", pid: int | None = None) -> str:
    """Return the name that a file or folder has while this process, of this host, writes it, or moves it aside.

    Args:
        name: of the whole.
        kind: "aside" for what is whole and steps aside.
        pid: of another process of this host; None for this one.
    """
    return f".{kind}-{os.getpid() if pid is None else pid}@{_HOST}-{name}"


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written in a folder, at any depth; put back what they had moved aside.

    Args:
        folder: the folder; it need not be there.
    """
    for left in sorted([*folder.rglob(".partial-*"), *folder.rglob(".aside-*")]):
        _sweep_one(left)


def _sweep_one(left: Path) -> None:
    named = _PARTIAL.fullmatch(left.name)
    if named is None or not left.exists() or _in_use(left, int(named[2]), named[3]):
        return
    if named[1] == "aside" and not left.with_name(named[4]).exists():  # killed between two renames
        left.rename(left.with_name(named[4]))
    else:
        _remove(left)


def _in_use(left: Path, pid: int, host: str) -> bool:
    """Return whether the process that writes it may still do so; one of another host only if it was written lately."""
    if host != _HOST:
        return time.time() - left.stat().st_mtime < _STALE
    return pid != os.getpid() and is_alive(pid)


def _remove(path: Path) -> None:
    with suppress(OSError):  # the error that leads here says more
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def is_alive(pid: int) -> bool:
    """Return whether there is such a process on this host.

    Args:
        pid: its number.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


class Lock:
    """A file that one process holds while it writes somewhere; it says which process, on which host, since when.

    The operating system frees it (flock) when the process ends, however that ends. Where there is no flock, the lock of
    a process of this host that is dead is taken over.

    Args:
        file: the lock's own file; it and its folder are created, and removed by `release` if nothing else is there.
        what: is written, for the message.

    Raises:
        UserError: if another process, or another thread, holds it; in one line that says who.
    """

    def __init__(self, file: Path, what: Path) -> None:
        self._file, self._what = file, what
        self._made = [folder for folder in (file.parent,) if not folder.exists()]
        self._owner = os.getpid()
        self._stream = self._take()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """Let others write."""
        if os.getpid() == self._owner:
            with suppress(OSError):  # of a file system that cannot be written any more: who wrote there says so
                if self._holds(self._stream):
                    self._file.unlink(missing_ok=True)
                for folder in self._made:
                    if folder.is_dir() and not any(folder.iterdir()):
                        folder.rmdir()
            self._stream.close()

    def renew(self) -> bool:
        """Take the lock again if its file was removed; return whether it was.

        Raises:
            UserError: if another process took it meanwhile.
        """
        if self._holds(self._stream):
            return False
        self._stream.close()  # and stays closed where another process has the lock now: release then lets it be
        self._stream = self._take()
        return True

    def _take(self) -> IO[str]:
        while True:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            stream = self._file.open("a+", encoding="utf-8")
            os.register_at_fork(after_in_child=stream.close)  # a child that outlives this process holds nothing
            stream.seek(0)
            if not _flocked(stream, stream.read()):
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                stream.close()
                raise UserError(
                    f"{self._what} is in use: {holder} is writing it. Wait until it has ended, or choose another"
                )
            if self._holds(stream):  # not one that its holder removed between our opening and locking it
                break
            stream.close()
        stream.truncate(0)
        since = datetime.now(UTC).isoformat(timespec="seconds")
        stream.write(f"process {os.getpid()} on {socket.gethostname()}, since {since},")
        stream.flush()
        return stream

    def _holds(self, stream: IO[str]) -> bool:
        try:
            return not stream.closed and os.path.samestat(os.fstat(stream.fileno()), self._file.stat())
        except OSError:
            return False


def _flocked(stream: IO[str], holder: str) -> bool:
    """Return whether a file could be locked: by flock, or where there is none by what is written in it."""
    try:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # of a file system without it
        named = re.match(r"process (\d+) on (\S+), ", holder)
        if named is None:
            return True
        return named[2] == socket.gethostname() and int(named[1]) != os.getpid() and not is_alive(int(named[1]))

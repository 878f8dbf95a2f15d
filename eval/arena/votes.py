"""Votes in a file of JSON lines that may be killed, copied or cut off at any time."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from gen.config.errors import UserError, shown
from gen.config.reading import parse_json, read_text
from gen.config.spec import convert
from gen.config.writing import Lock

__all__ = ["Vote", "VoteFile", "VoteList", "read_votes"]


@dataclass(frozen=True, kw_only=True)
class Vote:
    """One ranking of K pictures.

    Attributes:
        ballot: the question's own id, by which a vote that is sent twice counts once.
        picture: the prompt or noise that the pictures share, by name.
        models: the K models, as they stood from the left.
        ranks: of each, from 1, equal ones tied; None for those below all that have a rank, in no order.
        date: ISO 8601; None if it is not known.
    """

    ballot: str
    picture: str
    models: tuple[str, ...]
    ranks: tuple[int | None, ...]
    date: str | None = None

    def __post_init__(self) -> None:
        check_ranks(self.ranks, len(self.models))
        if len(self.models) < 2 or len(set(self.models)) < len(self.models) or not all(self.models):
            raise UserError(f"models {shown(self.models)}; a vote is about two or more different ones")


def check_ranks(ranks: Sequence[int | None], k: int) -> None:
    """Raise UserError unless ranks order k pictures: as many, from 1, without a gap that no tie explains."""
    given = sorted(rank for rank in ranks if rank is not None)
    competition = [1 + sum(other < rank for other in given) for rank in given]  # 1, 2, 2, 4
    if len(ranks) != k or not given or given != competition:
        raise UserError(
            f"ranks {shown(list(ranks))} of {k} pictures; allowed: 1 for the best, then 2 ..., equal ones for ties "
            "(1, 2, 2, 4), None for the rest"
        )


@dataclass(frozen=True)
class VoteList:
    """The votes of an arena, as a leaderboard takes them.

    Attributes:
        name: of the arena; its file's.
        votes: in their order.
    """

    name: str
    votes: tuple[Vote, ...]

    @classmethod
    def read(cls, path: Path) -> VoteList:
        """Return the votes of a file."""
        return cls(path.stem, tuple(read_votes(path)))


class VoteFile:
    """A file that votes are appended to, by one process at a time; each is on the disk when `append` returns.

    Args:
        path: of the .jsonl; it and its folder are created. What a killed process left half written at its end is cut
            off, with a warning.

    Raises:
        UserError: if another process is writing it, or it holds anything but votes.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = Lock(path.with_name(f".{path.name}.lock"), path)
        try:
            whole = _whole(path) if path.exists() else 0
            self.votes = read_votes(path) if path.exists() else []
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            os.ftruncate(self._file, whole)
            os.lseek(self._file, whole, os.SEEK_SET)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> VoteFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def append(self, vote: Vote) -> None:
        """Add a vote; if this returns, it survives a crash of the machine."""
        line = memoryview(json.dumps(asdict(vote), ensure_ascii=True, allow_nan=False).encode() + b"\n")
        while line:
            line = line[os.write(self._file, line) :]
        os.fsync(self._file)
        self.votes.append(vote)

    def close(self) -> None:
        """Let other processes write the file."""
        os.close(self._file)
        self._lock.release()


def read_votes(path: Path) -> list[Vote]:
    """Return the votes of a file in their order; one that was sent twice counts once.

    A last line without its end, which a killed process leaves, is passed over with a warning.

    Args:
        path: of the .jsonl.

    Raises:
        UserError: naming the line that is no vote.
    """
    text = read_text(path)
    lines = text.split("\n")
    if torn := lines.pop():
        warnings.warn(f"passed over: {path} ends in the middle of a vote: {shown(torn, 60)}", stacklevel=2)
    votes: dict[str, Vote] = {}
    for number, line in enumerate(lines, 1):
        source = f"{path}, line {number}"
        try:
            vote = convert(parse_json(line, source), Vote, "vote")
        except UserError as error:
            raise UserError(f"{error}" if source in str(error) else f"{source}: {error}") from None
        votes.setdefault(vote.ballot, vote)
    return list(votes.values())


def _whole(path: Path) -> int:
    """Return the length of a file's whole lines."""
    return path.read_bytes().rfind(b"\n") + 1

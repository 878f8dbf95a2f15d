"""The folder of a run as those who write it see it: run.json, metrics.jsonl, checkpoints/ of its own line, final/."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.formats import NEWEST
from gen.config.spec import Json
from gen.config.writing import Lock, sweep, write_json
from gen.training.distributed import is_main
from gen.training.log import MetricsFile

__all__ = ["RunFolder", "lock_of"]

CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make it writable"),
}


@contextmanager
def lock_of(folder: Path) -> Iterator[Lock | None]:
    """Hold the lock of a run folder, in the process that writes it, and remove what killed ones left half written.

    Args:
        folder: of the run, new or not.

    Raises:
        UserError: if another process is writing there, and for what is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give the folder of a run, or a new one")
    with Lock(folder / ".lock", folder) if is_main() else nullcontext() as lock:
        if lock is not None:
            sweep(folder)
        yield lock


class RunFolder:
    """The folder of a run, for the process that writes it; of sharded checkpoints, all do.

    Args:
        path: the folder.
        about: the content of run.json.
        line: the run's line, see gen.config.checkpoints.lineage.
        keep: how many checkpoints of the line stay.
        spare: names of checkpoints that stay beside them.
        lock: of the folder; None if it is not held.

    Attributes:
        settle: waits for a checkpoint that is being written, before an error names the newest one.
    """

    settle: Callable[[], None] = staticmethod(lambda: None)

    def __init__(
        self, path: Path, about: Json, line: Sequence[int], keep: int, spare: Collection[str], lock: Lock | None
    ) -> None:
        self.path, self._about, self._line, self._keep, self._spare = path, about, list(line), keep, spare
        self._lock = lock

    def open(self, step: int) -> str:
        """Write run.json, and open metrics.jsonl after a step; return what is to be said about it, "" for nothing."""
        with self.explained("run.json and metrics.jsonl"):
            write_json(self.path / "run.json", {"format": NEWEST["run"], **self._about})
            self.metrics = MetricsFile(self.path / "metrics.jsonl", step)
        return self.metrics.problem

    def record(self, **values: object) -> None:
        """Write a line of metrics."""
        with self.explained("metrics.jsonl"):
            self.metrics.write(**values)

    def close(self) -> None:
        """Close metrics.jsonl."""
        if hasattr(self, "metrics"):
            self.metrics.close()

    def free(self) -> None:
        """Remove what `open` wrote: the folder is free for the run that it should have been."""
        for name in ("run.json", "metrics.jsonl"):
            (self.path / name).unlink(missing_ok=True)

    def save(self, write: Callable[[Path, Json], None], manifest: Json, tidy: bool = True) -> None:
        """Write a complete checkpoint; with `tidy`, then remove older ones, those of other lines, and a former final/.

        Any thread may call this, one at a time.

        Args:
            write: writes a checkpoint, given its folder and manifest.
            manifest: without the run's line.
            tidy: whether to remove any.
        """
        folder, step = self.path / "checkpoints", manifest["step"]
        with self.explained(f"step {step}"):
            write(folder / checkpoints.checkpoint_name(step), manifest | {"line": self._line})
        if tidy:
            checkpoints.prune(folder, self._keep, self._spare)
            if (self.path / "final").is_dir():  # of an earlier end, or of another line
                checkpoints.remove(self.path / "final")

    def superseded(self) -> list[str]:
        """Return the names of checkpoints that are not of the run's own line."""
        folder = self.path / "checkpoints"
        line = checkpoints.lineage(folder)
        return [path.name for path in sorted(folder.glob("step-*")) if path not in line]

    def finish(self, write: Callable[[Path, Json], None], manifest: Json) -> None:
        """Write final/; see `save`."""
        with self.explained("final/"):
            write(self.path / "final", manifest | {"line": self._line})

    def is_final(self, step: int) -> bool:
        """Return whether final/ is of this line and step."""
        try:
            end = checkpoints.read(self.path / "final", verify=False)
        except UserError:
            return False
        return checkpoints.age(end) == (len(self._line), step)

    def restore(self, step: int) -> str:
        """Write run.json again if the folder was removed meanwhile; return what is to be said of that, or ""."""
        with self.explained("the lock"):
            removed = self._lock is not None and self._lock.renew()
        if not (removed or not (self.path / "run.json").exists()) or not hasattr(self, "metrics"):
            return ""
        self.metrics.close()
        self.open(step)
        return f"{self.path} was removed while it was trained: written again, without what it held before step {step}"

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Turn an error of the file system into one line: what happened, what is safe, and what to do next.

        Args:
            what: is written.
        """
        try:
            yield
        except OSError as error:
            self.settle()
            last = checkpoints.newest(self.path / "checkpoints")
            safe = f"Last good checkpoint: {last}" if last else f"No checkpoint is left in {self.path}"
            again = "to go on from there" if last else "to start anew"
            raise UserError(
                f"{self.path}: {what} could not be written: {error.strerror or error}. {safe}; {self._cure(error)}, "
                f"and run this again {again}"
            ) from error

    def _cure(self, error: OSError) -> str:
        """Return what the user has to do about an error of the file system."""
        known = ("", "checkpoints", "samples", "final")
        if files := [path for path in map(self.path.joinpath, known) if path.exists() and not path.is_dir()]:
            return f"{files[0]} is a file now: move it away"
        return CURES.get(error.errno or 0, "mend that")

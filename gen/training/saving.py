"""Saving a run: a checkpoint is written in the background, from a copy of the state in the CPU's memory.

One process writes whole files, or each process its own shards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gen.config import checkpoints
from gen.config.spec import Json
from gen.training.background import BackgroundJob, Snapshot
from gen.training.distributed import background_group
from gen.training.run_folder import RunFolder
from gen.training.shards import Files, Shards, gathered

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Saver"]


class Saver:
    """Writer of a run's checkpoints; every process has to make the same calls.

    At most one checkpoint is being written. What its writing raises is raised by the next call.

    Args:
        output: the run's folder.
        accelerator: of the processes.
        sharded: whether each process writes its own shards; their threads agree through a group of their own when all
            are there, and only then does the checkpoint get its name.

    Attributes:
        step: of the last checkpoint; 0 for none.
    """

    def __init__(self, output: RunFolder, accelerator: Accelerator, sharded: bool) -> None:
        self.step = 0
        self._output, self._accelerator, self._sharded = output, accelerator, sharded
        self._main = accelerator.is_main_process
        self._group = background_group() if sharded else None
        self._job, self._snapshot, self._reserved = BackgroundJob(), Snapshot(), False
        output.settle = self._job.join

    def save(self, files: Files, manifest: Json, tidy: bool = True) -> str:
        """Save a checkpoint; `settle` waits for it.

        Args:
            files: tensors by name and file name.
            manifest: see gen.config.checkpoints.write, without the run's line.
            tidy: whether others are removed then, see RunFolder.save.

        Returns:
            What is to be said about it; "" for nothing.
        """
        self.settle()  # the memory of its copy is taken again
        write, said, self.step = self._writer(files, self._snapshot), "", manifest["step"]
        if write is not None:
            said = self._output.restore(self.step)
            self._job.start(partial(self._output.save, write, manifest, tidy and self._main))
        return said

    def finish(self, files: Files, manifest: Json) -> None:
        """Write final/, once the last checkpoint is there.

        Args:
            files, manifest: see `save`.
        """
        self.settle()
        write = self._writer(files)
        if write is not None:
            self._output.restore(manifest["step"])
            self._output.finish(write, manifest)
        self.settle()

    def reserve(self, files: Callable[[], Files]) -> None:
        """Take the memory that saving needs, in the background; the first call does.

        Args:
            files: returns the tensors that will be saved.
        """
        if self._reserved or not (self._main or self._sharded):
            return
        self._reserved = True
        own = Shards.of(files()).files if self._sharded else files()
        self._job.start(partial(self._snapshot.reserve, own))

    def _writer(self, files: Files, snapshot: Snapshot | None = None) -> Callable[[Path, Json], None] | None:
        """Return what writes a checkpoint, given its folder and manifest; None in a process that writes nothing.

        Args:
            files: tensors by name and file name, sharded or not; every process has to call at once.
            snapshot: takes a copy, so that the tensors may change while they are written.
        """
        if self._sharded:
            shards = Shards.of(files)
            shards = shards if snapshot is None else shards.copied(snapshot)
            return partial(shards.write, group=self._group)
        whole = gathered(files, self._main, snapshot)
        return (lambda folder, manifest: checkpoints.write(folder, whole, manifest)) if self._main else None

    def check(self) -> None:
        """Raise what a writing that has ended has raised."""
        self._job.check()

    def wait(self) -> None:
        """Wait until this process has written."""
        self._job.wait()

    def settle(self) -> None:
        """Wait until what is being saved is there: a launcher ends all processes, one still writing, if one ends."""
        self._job.wait()
        self._accelerator.wait_for_everyone()

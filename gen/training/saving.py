"""Saving a run: whole files are written in the background from a copy of the state, shards at once by all processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from gen.config.spec import Json
from gen.training.background import BackgroundJob, Snapshot
from gen.training.run_folder import RunFolder
from gen.training.shards import Files, writer

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Saver"]


class Saver:
    """Writer of a run's checkpoints; every process has to make the same calls.

    At most one checkpoint is being written. What its writing raises is raised by the next call.

    Args:
        output: the run's folder.
        accelerator: of the processes.
        sharded: whether each process writes its own shards; they talk to each other, and do not train meanwhile.

    Attributes:
        step: of the last checkpoint; 0 for none.
    """

    def __init__(self, output: RunFolder, accelerator: Accelerator, sharded: bool) -> None:
        self.step = 0
        self._output, self._accelerator, self._sharded = output, accelerator, sharded
        self._main = accelerator.is_main_process
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
        write, said, self.step = writer(files, self._sharded, self._main, self._snapshot), "", manifest["step"]
        if write is not None:
            said = self._output.restore(self.step)
            job = partial(self._output.save, write, manifest, tidy and self._main)
            job() if self._sharded else self._job.start(job)
        if self._sharded:
            self.settle()
        return said

    def finish(self, files: Files, manifest: Json) -> None:
        """Write final/, once the last checkpoint is there.

        Args:
            files, manifest: see `save`.
        """
        self.settle()
        write = writer(files, self._sharded, self._main)
        if write is not None:
            self._output.restore(manifest["step"])
            self._output.finish(write, manifest)
        self.settle()

    def reserve(self, files: Callable[[], Files]) -> None:
        """Take the memory that saving needs, in the background; the first call does.

        Args:
            files: returns the tensors that will be saved.
        """
        if self._main and not self._sharded and not self._reserved:
            self._reserved = True
            self._job.start(partial(self._snapshot.reserve, files()))

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

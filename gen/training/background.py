"""Work beside the training: copies of its state in memory, and a thread for one job at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["BackgroundJob", "Snapshot"]


class Snapshot:
    """Copies of named tensors in the CPU's memory, which is kept for the next ones: new memory takes six times as long.

    So a run that saves needs its state's bytes in the CPU's memory once more; those of a GPU's tensors are pinned.
    """

    def __init__(self) -> None:
        self._memory: dict[tuple[str, str], Tensor] = {}

    def reserve(self, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take the memory of copies; any thread may do so before the first one.

        Args:
            files: tensors as they will be copied, by name and file name.
        """
        for file, tensors in files.items():
            for name, tensor in tensors.items():
                own = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._memory[file, name] = own.zero_()  # the system gives memory when it is written to

    @torch.no_grad()
    def copy(self, file: str, name: str, tensor: Tensor) -> Tensor:
        """Copy a tensor; one on a GPU is not there yet before `wait`.

        Args:
            file, name: of the tensor; the last copy of that name is overwritten.
            tensor: on any device.
        """
        own = self._memory.get((file, name))
        if own is None or own.shape != tensor.shape or own.dtype != tensor.dtype:
            self.reserve({file: {name: tensor}})
            own = self._memory[file, name]
        return own.copy_(tensor, non_blocking=tensor.is_cuda)

    def wait(self) -> None:
        """Wait until all copies are there."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()


class BackgroundJob:
    """A thread that runs one job at a time; what a job raises, it raises in the thread that asks for it."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, job: Callable[[], object]) -> None:
        """Start a job, once the one before has ended.

        Args:
            job: what to call.
        """
        self.wait()
        self._thread = threading.Thread(target=self._run, args=(job,), name="gen background")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a job that has ended in one."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def join(self) -> None:
        """Wait until the job has ended; from within the job, do not."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def wait(self) -> None:
        """Wait until the job has ended, and raise its error, once."""
        self.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:  # whoever asks next gets it
            self._error = error

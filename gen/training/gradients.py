"""Losses of micro-batches and their gradients, over several processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gen.diffusion.denoiser import Denoiser
from gen.training.objectives import Step

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Gradients"]


class Gradients:
    """Gradients of a step, accumulated over its micro-batches and averaged over the processes.

    Args:
        accelerator: starts the backward pass.
        denoisers: those that are trained, by role, as accelerate wrapped them.
        micro_batches: of a step.
        sharded: whether each process has a part of the networks.
    """

    def __init__(
        self, accelerator: Accelerator, denoisers: Mapping[str, Denoiser], micro_batches: int, sharded: bool
    ) -> None:
        self._accelerator, self._denoisers, self._micro_batches = accelerator, denoisers, micro_batches
        self._local = accelerator.num_processes > 1 and not sharded and len(denoisers) == 1

    def add(self, losses: Iterator[Step], last: bool) -> Step | None:
        """Add the gradient of one micro-batch's next loss; the last micro-batch synchronises the processes.

        Args:
            losses: what an objective yields for the micro-batch.
            last: of the step.

        Returns:
            What was yielded, detached; None at the end.
        """
        with self._no_sync(unless=last), self._accelerator.autocast():
            part = next(losses, None)
            if part is None:
                return None
            role, loss, logs = part
            scaled = loss / self._micro_batches
        with self._no_sync(unless=last):
            self._accelerator.backward(scaled)
        return role, loss.detach(), {k: v.detach() for k, v in logs.items()}

    def _no_sync(self, unless: bool) -> AbstractContextManager[object]:
        """Keep gradients local within, where one network is replicated."""
        if unless or not self._local:
            return nullcontext()
        (f,) = self._denoisers.values()
        return self._accelerator.no_sync(f.net)

    def mean(self, values: Sequence[Tensor]) -> Tensor:
        """Average a number over micro-batches and processes.

        Args:
            values: 0-d, of each micro-batch.
        """
        mean = torch.stack(list(values)).mean().to(self._accelerator.device)
        return mean if self._accelerator.num_processes == 1 else self._accelerator.reduce(mean, "mean")

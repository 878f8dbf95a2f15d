"""Losses of micro-batches and their gradients, over several processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        sharded: whether each process has a part of the networks.
        processes: over which to average; 1 where each steps apart.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        denoisers: Mapping[str, Denoiser],
        sharded: bool,
        processes: int,
    ) -> None:
        self._accelerator, self._denoisers = accelerator, denoisers
        self._processes, self._local = processes, processes > 1 and not sharded and len(denoisers) == 1

    def weights(self, n: int, counts: Iterable[Tensor | None]) -> list[Tensor | float]:
        """Return the weight of each micro-batch's loss in the mean that processes take.

        Args:
            n: micro-batches of the step, in this process.
            counts: of each of them, as of Objective.count; not asked for where one micro-batch is the step's.
        """
        processes = self._processes
        known = [] if n * processes == 1 else [count for count in counts if count is not None]
        if not known:
            return [1 / n] * n
        number = torch.stack(known).double()
        total = number.sum() if processes == 1 else self._accelerator.reduce(number.sum(), "sum")
        return list(number * processes / total.clamp(min=1))

    def add(
        self, running: Sequence[Iterator[Step]], weights: Sequence[Tensor | float]
    ) -> tuple[str | tuple[str, ...], dict[str, Tensor]] | None:
        """Add the gradient of the micro-batches' next loss.

        Args:
            running: what an objective yields for each micro-batch.
            weights: of the micro-batches.

        Returns:
            The role, and the means of "loss" and of what is logged over micro-batches and processes; None at the end.
        """
        pairs = zip(running, weights, strict=True)
        yielded = [self._add(losses, weight, last=losses is running[-1]) for losses, weight in pairs]
        parts = [part for part in yielded if part is not None]
        if not parts:
            return None
        role, _, names = parts[0]
        means = {"loss": self._mean([loss for _, loss, _ in parts], weights)}
        return role, means | {k: self._mean([values[k] for _, _, values in parts], weights) for k in names}

    def _add(self, losses: Iterator[Step], weight: Tensor | float, last: bool) -> Step | None:
        """Add the gradient of one micro-batch's; the last one synchronises the processes."""
        with self._no_sync(unless=last), self._accelerator.autocast():
            part = next(losses, None)
            if part is None:
                return None
            role, loss, logs = part
            scaled = _weighted(loss, weight)
        with self._no_sync(unless=last):
            self._accelerator.backward(scaled)
        return role, loss.detach(), {k: v.detach() for k, v in logs.items()}

    def _no_sync(self, unless: bool) -> AbstractContextManager[object]:
        """Keep gradients local within, where one network is replicated."""
        if unless or not self._local:
            return nullcontext()
        (f,) = self._denoisers.values()
        return self._accelerator.no_sync(f.net)

    def _mean(self, values: Sequence[Tensor], weights: Sequence[Tensor | float]) -> Tensor:
        parts = [_weighted(*pair) for pair in zip(values, weights, strict=True)]
        mean = torch.stack(parts).sum().to(self._accelerator.device)
        return mean if self._processes == 1 else self._accelerator.reduce(mean, "mean")


def _weighted(value: Tensor, weight: Tensor | float) -> Tensor:
    """Return value times weight, in the value's dtype."""
    return value * (weight if isinstance(weight, float) else weight.to(value))

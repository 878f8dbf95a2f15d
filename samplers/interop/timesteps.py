"""Lists of timesteps that pipelines cut by steps, and that grow in a loop that decides as it goes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gen.samplers.interop.diffusers_scheduler import Scheduler

__all__ = ["LiveTimesteps", "StepwiseTimesteps", "evaluations_per_step"]


class StepwiseTimesteps(Tensor):
    """Timesteps of a loop whose steps have several evaluations, which pipelines cut by steps.

    `[k * order :]` are those of a loop from step k on, and `[:k]` those up to the end of the step in which the k-th
    evaluation lies (of `[:1]` only where it is iterated over). `< t` is true of as many last entries as make the first
    of them that of the first step below t. So a loop is divided between a pipeline and its refiner. Their length is
    that of the list, or with `counts_steps` the number of steps, until they are cut.
    """

    scheduler: Scheduler
    counts_steps: bool
    first: int  # step that they begin with

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return plain tensors: only the list itself is cut by steps."""
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def of(cls, timesteps: Tensor, scheduler: Scheduler, counts_steps: bool, first: int = 0) -> StepwiseTimesteps:
        listed = timesteps.as_subclass(cls)
        listed.scheduler, listed.counts_steps, listed.first = scheduler, counts_steps, first
        return listed

    def __len__(self) -> int:
        return self.scheduler.num_inference_steps if self.counts_steps else len(self.as_subclass(Tensor))

    def __deepcopy__(self, memo: dict[int, Any]) -> StepwiseTimesteps:
        copied = memo[id(self)] = self.as_subclass(Tensor).clone().as_subclass(StepwiseTimesteps)
        copied.scheduler, copied.counts_steps = copy.deepcopy(self.scheduler, memo), self.counts_steps
        copied.first = self.first
        return copied

    def __getitem__(self, index: Any) -> Any:
        plain, order = self.as_subclass(Tensor), self.scheduler.order
        if not isinstance(index, slice) or index.step is not None:
            return plain[index]
        if index.start and index.stop is None and index.start % order == 0:
            first = self.first + index.start // order
            listed = self.scheduler.listed(list(itertools.chain.from_iterable(self.scheduler.plan(first))))
            return StepwiseTimesteps.of(listed, self.scheduler, False, first)
        if not index.start and index.stop is not None and index.stop > 1:
            ends = itertools.accumulate(len(step) for step in self.scheduler.plan(self.first))
            return plain[: next((end for end in ends if end >= index.stop), len(plain))]
        one = not index.start and index.stop == 1
        return StepwiseTimesteps.of(plain[:1], self.scheduler, False, self.first) if one else plain[index]

    def __iter__(self) -> Iterator[Tensor]:
        """Yield the timesteps; of the first alone those of its whole step."""
        plain, steps = self.as_subclass(Tensor), self.scheduler.plan(self.first)
        yield from (self.scheduler.listed(steps[0]) if len(plain) == 1 else plain)

    def __lt__(self, other: Any) -> Tensor:
        begins = self.scheduler.to_network(self.scheduler.times[self.first : -1])
        above = int((begins >= other).sum())
        return torch.arange(len(self), device=self.device) >= self.scheduler.order * above


class LiveTimesteps:
    """The timesteps of a solver that decides as it goes: those known so far, which grow while `step` is called.

    `[k:]`, before the first step, are those of a loop from step k on; with `counts_steps` the length is the number of
    steps until then.
    """

    def __init__(self, scheduler: Scheduler, counts_steps: bool, first: int = 0):
        self.scheduler, self.counts_steps, self.first = scheduler, counts_steps, first

    def known(self) -> list[Tensor]:
        scheduler = self.scheduler
        if scheduler.pending is None:
            return [scheduler.to_network(t) for t in scheduler.times[self.first : -1][:1]]
        return [scheduler.to_network(t) for t in (*scheduler.evaluated, *[scheduler.pending.t][: scheduler.running])]

    def __len__(self) -> int:
        return self.scheduler.num_inference_steps if self.counts_steps else len(self.known())

    def __iter__(self) -> Iterator[Tensor]:
        for i in itertools.takewhile(lambda i: i < len(self.known()), itertools.count()):
            yield self.known()[i]

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, int):
            return self.known()[index]
        if index.stop is None and index.step is None:
            return LiveTimesteps(self.scheduler, False, self.first + (index.start or 0))
        return torch.stack(self.known()[index])


def evaluations_per_step(steps: list[list[Any]]) -> int | None:
    """Return how many evaluations each step has, the last one that many at most; None if they differ.

    Args:
        steps: the evaluations of each.
    """
    most = len(steps[0])
    return most if all(len(step) == most for step in steps[:-1]) and len(steps[-1]) <= most else None

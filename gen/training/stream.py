"""The order of the data: an endless sequence of shuffled epochs in which position p depends on (seed, p) alone."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from gen.config.errors import UserError
from gen.config.spec import Json
from gen.data import DataSet
from gen.diffusion.noise import derive
from gen.training.order import BucketOrder, GroupOrder, ItemOrder, Order
from gen.training.run import Run

__all__ = ["ShuffledStream", "StepBatchSampler", "batch_sizes", "in_one_line", "iterate_steps", "keep_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
KEPT = 2**30  # bytes


class ShuffledStream(Dataset[Json]):
    """A map-style view of the endless sequence: [p] is the item at position p, with p as its "index".

    Data with random crops and the like are drawn by a key of (seed, epoch, index), see gen.data.DataSet.

    Args:
        data: the data set, not empty.
        seed: the run's; epoch k has the permutation of derive("order", seed, k).
        batch_size: items of a step, over all processes; with data in buckets those of a step are of one, with data in
            groups of some.
    """

    def __init__(self, data: DataSet, seed: int, batch_size: int = 1) -> None:
        if not len(data):
            raise UserError("the data set is empty")
        self._data, self._seed = data, seed
        self._order: Order = ItemOrder(len(data), seed)
        if (buckets := getattr(data, "buckets", None)) is not None:
            self._order = BucketOrder(buckets, batch_size, seed)
        elif (groups := getattr(data, "groups", None)) is not None:
            self._order = GroupOrder(groups, getattr(data, "groups_at_once", 1), batch_size, seed)

    def row(self, position: int) -> int:
        """Return the data set's index of the item at a position."""
        return self._order.at(position)[1]

    def __getitem__(self, position: int) -> Json:
        epoch, row = self._order.at(position)
        if isinstance(self._order, GroupOrder) and hasattr(self._data, "keep"):
            self._data.keep(self._order.groups_needed)
        draw = getattr(self._data, "draw", None)
        item = self._data[row] if draw is None else draw(row, self._key(epoch, row))
        return {**item, "index": position}

    def _key(self, epoch: int, row: int) -> int:
        """Return the key of an item's random choices."""
        shared = getattr(self._data, "drawn_with", None)
        return derive("draw", self._seed, epoch, row if shared is None else shared(row))

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """Return the items at some positions, stacked; a DataLoader reads by it."""
        data, at = self._data, [self._order.at(position) for position in positions]
        if hasattr(data, "draw_batch"):
            keys = [self._key(epoch, row) for epoch, row in at]
            items = data.draw_batch([row for _, row in at], keys)
        elif hasattr(data, "batch") and not hasattr(data, "draw"):
            items = data.batch([row for _, row in at])
        else:
            collated: dict[str, Tensor] = default_collate([self[position] for position in positions])
            return collated
        return {**items, "index": torch.tensor(positions)}


class StepBatchSampler(Sampler[list[int]]):
    """Positions in the stream of one process's micro-batches, step by step, to the run's last.

    Args:
        run: its steps and its global batch size.
        start: the first step.
        share: samples of run.batch_size that this process has; of a step as many times more as its plan says.
        rank: the process.
        micro: samples of a micro-batch, a divisor of share.
    """

    def __init__(self, run: Run, start: int, share: int, rank: int, micro: int) -> None:
        self._run, self._start, self._share, self._rank, self._micro = run, start, share, rank, micro

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._start, self._run.steps):
            share = self._share * self._run.batch_plan.factor(step)
            first = self._run.samples_before(step) + self._rank * share
            for i in range(first, first + share, self._micro):
                yield list(range(i, i + self._micro))


def keep_memory(_worker: int = 0) -> None:
    """Keep a worker's freed memory for its next batch; else each item pays for its pages anew, 4 % of reading it.

    Only glibc has such a choice.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for threshold in M_TRIM_THRESHOLD, M_MMAP_THRESHOLD:
            mallopt(threshold, KEPT)


def batch_sizes(run: Run, world: int) -> tuple[int, int]:
    """Return the samples of a step per process, before a plan enlarges it, and of a micro-batch.

    Args:
        run: with the sizes of a step's batch and of a process's micro-batch.
        world: number of processes.

    Raises:
        UserError: for sizes that do not divide.
    """
    if run.batch_size % world:
        raise UserError(f"batch_size = {run.batch_size} does not divide over {world} processes")
    share = run.batch_size // world
    micro = run.micro_batch_size or share
    if share % micro:
        raise UserError(f"micro_batch_size = {micro} does not divide the {share} samples of each process")
    return share, micro


def iterate_steps(
    stream: ShuffledStream, run: Run, start: int, share: int, rank: int, micro: int
) -> Iterator[tuple[int, list[dict[str, Tensor]]]]:
    """Yield (step, its micro-batches) for one process, with run.workers loading in the background.

    Args:
        stream: the data in order.
        run, start, share, rank, micro: as of StepBatchSampler.
    """
    sampler = StepBatchSampler(run, start, share, rank, micro)
    init = keep_memory if run.workers else None
    loader = DataLoader(
        stream, batch_sampler=sampler, num_workers=run.workers, worker_init_fn=init, collate_fn=_as_it_is
    )
    items = iter(loader) if run.workers else map(stream.__getitems__, sampler)
    for step in range(start, run.steps):
        try:
            batches = [next(items) for _ in range(share * run.batch_plan.factor(step) // micro)]
        except UserError as error:
            if not run.workers:
                raise
            raise in_one_line(error) from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            why = "the system may lack memory for so many, see --workers and --micro-batch-size"
            raise UserError(f"a process that loads data was killed before step {step}: {why}") from error
        yield step, batches


def _as_it_is(batch: Any) -> Any:
    """Return what the stream has stacked."""
    return batch


def in_one_line(error: UserError) -> UserError:
    """Return the error of a process that loads data as it was raised there: it arrives with its traceback as its text.

    Args:
        error: as a DataLoader raises it.
    """
    last = str(error.args[0]).rstrip().splitlines()[-1]  # "module.Class: the message"
    return type(error)(last.partition(": ")[2])

"""The order of items in training: endless shuffled epochs, of all items, of buckets, or of a few groups at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch

from gen.diffusion.noise import derive

__all__ = ["BucketOrder", "GroupOrder", "ItemOrder", "Order"]


class Order(Protocol):
    """An endless order of the items 0 .. n - 1, of which every position can be computed alone."""

    def at(self, position: int) -> tuple[int, int]:
        """Return the epoch and the item at a position.

        Args:
            position: from 0.
        """
        ...


class ItemOrder:
    """Epochs of n items, each a permutation of all.

    Args:
        n: number of items.
        *names: what the permutations depend on, beside the epoch.
    """

    def __init__(self, n: int, *names: int | str) -> None:
        self._n, self._names, self._epoch = n, names, -1

    def at(self, position: int) -> tuple[int, int]:
        """Return the epoch and the item at a position."""
        epoch, offset = divmod(position, self._n)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, _permutation(self._n, "order", *self._names, epoch)
        return epoch, int(self._order[offset])


class BucketOrder:
    """Steps of items of one bucket each, by which every epoch takes each item once.

    A bucket's items come in endless epochs of their own, and its steps cut that sequence in batches, as those of all
    items do without buckets. In epoch k of all n items a bucket of m has the steps that its first (k + 1) m items fill
    and its first k m did not; the steps of an epoch are shuffled. So an epoch's last items in a bucket, too few to fill
    a batch, begin its first batch of the next epoch.

    Args:
        buckets: of each item, from 0, [n].
        batch_size: items of a step.
        seed: of all permutations.
    """

    def __init__(self, buckets: Sequence[int] | np.ndarray, batch_size: int, seed: int) -> None:
        numbers = np.asarray(buckets)
        self._items = [np.flatnonzero(numbers == bucket) for bucket in np.unique(numbers)]
        self._orders = [ItemOrder(len(items), seed, "bucket", k) for k, items in enumerate(self._items)]
        self._n, self._batch, self._seed, self._epoch = len(numbers), batch_size, seed, -1

    def at(self, position: int) -> tuple[int, int]:
        """Return the bucket's epoch and the item at a position; batch_size positions are a step."""
        step, offset = divmod(position, self._batch)
        bucket, number = self._batch_of(step)
        epoch, k = self._orders[bucket].at(number * self._batch + offset)
        return epoch, int(self._items[bucket][k])

    def _batch_of(self, step: int) -> tuple[int, int]:
        """Return the bucket of a step, and which of the bucket's batches it is."""
        epoch = step * self._batch // self._n  # or a later one, as batches that are not full yet come later
        while sum(self._full(epoch + 1)) <= step:
            epoch += 1
        if epoch != self._epoch:
            before, after = self._full(epoch), self._full(epoch + 1)
            buckets = [k for k in range(len(before)) for _ in range(before[k], after[k])]
            numbers = [iter(range(first, last)) for first, last in zip(before, after, strict=True)]
            shuffled = _permutation(len(buckets), "buckets", self._seed, epoch)
            self._epoch, self._first = epoch, sum(before)
            self._steps = [(buckets[i], next(numbers[buckets[i]])) for i in shuffled]
        return self._steps[step - self._first]

    def _full(self, epochs: int) -> list[int]:
        """Return how many batches each bucket's items fill in so many epochs."""
        return [epochs * len(items) // self._batch for items in self._items]


class GroupOrder:
    """Steps of items of a few groups at once, for data that are read group by group, with little in memory.

    The items are cut into as many runs of neighbours as groups are read at once, and a batch into as many slices: slice
    k of every batch is of run k. A run has endless epochs of its own, in each of which it takes its groups in a new
    random order, one after the other, and the items of each in a new random order. So a batch mixes items from all over
    the data, and a process that has some slices of the batch reads its runs alone. A group that two runs share is read
    by both, each taking its own items.

    Args:
        groups: items of each group, in order, [G].
        at_once: runs; at most one for each item of a batch.
        batch_size: items of a step.
        seed: of all permutations.
    """

    def __init__(self, groups: Sequence[int] | np.ndarray, at_once: int, batch_size: int, seed: int) -> None:
        ends, self._seed, self._batch = np.cumsum(groups), seed, batch_size
        n = int(ends[-1])
        self._runs = min(at_once, batch_size) if n >= batch_size else 1
        self._slices = [-(-k * batch_size // self._runs) for k in range(self._runs + 1)]  # where each begins
        first = [n * start // batch_size for start in self._slices]
        self._pieces = [  # of each run, the parts of groups that it has: where they begin, and where the last one ends
            np.unique([start, *ends[(ends > start) & (ends < stop)], stop]) for start, stop in pairwise(first)
        ]
        self._epochs: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}
        self._items: dict[int, tuple[int, int, list[int]]] = {}

    @property
    def groups_needed(self) -> int:
        """How many groups have to be in memory so that none is read twice: all of a step may end and others begin."""
        return 2 * max(1, len(self._items))

    def at(self, position: int) -> tuple[int, int]:
        """Return the run's epoch and the item at a position; batch_size positions are a step."""
        step, offset = divmod(position, self._batch)
        run = offset * self._runs // self._batch
        start, stop = self._slices[run : run + 2]
        pieces = self._pieces[run]
        epoch, k = divmod(step * (stop - start) + offset - start, int(pieces[-1] - pieces[0]))
        if self._epochs.get(run, (-1,))[0] != epoch:
            order = np.array(_permutation(len(pieces) - 1, "groups", self._seed, run, epoch))
            self._epochs[run] = epoch, order, np.cumsum(np.diff(pieces)[order])
        _, order, ends = self._epochs[run]
        place = int(np.searchsorted(ends, k, "right"))
        piece = int(order[place])
        size = int(pieces[piece + 1] - pieces[piece])
        if self._items.get(run, (-1, -1))[:2] != (epoch, piece):
            self._items[run] = epoch, piece, _permutation(size, "rows", self._seed, epoch, int(pieces[piece]))
        return epoch, int(pieces[piece]) + self._items[run][2][k - int(ends[place]) + size]


def _permutation(n: int, *names: int | str) -> list[int]:
    generator = torch.Generator().manual_seed(derive(*names))
    return list(torch.randperm(n, generator=generator).tolist())

"""The order of items in training: endless shuffled epochs, of all items or of one bucket after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from gen.diffusion.noise import derive

__all__ = ["BucketOrder", "ItemOrder", "Order"]


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


def _permutation(n: int, *names: int | str) -> list[int]:
    generator = torch.Generator().manual_seed(derive(*names))
    return list(torch.randperm(n, generator=generator).tolist())

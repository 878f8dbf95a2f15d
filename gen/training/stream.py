"""The order of the data: an endless sequence of shuffled passes in which place p is a function of (seed, p) alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gen.config.errors import UserError
from gen.diffusion.noise import derive
from gen.training.run import Run

__all__ = ["Stream", "batches"]


class Stream(Dataset[dict[str, Any]]):
    """[p] is the item at place p of the stream, with its place as "index"."""

    def __init__(self, data: Any, seed: int) -> None:
        if not len(data):
            raise UserError("the data set is empty")
        self._data, self._seed, self._pass = data, seed, -1

    def __getitem__(self, place: int) -> dict[str, Any]:
        number, offset = divmod(place, len(self._data))
        if number != self._pass:
            generator = torch.Generator().manual_seed(derive("order", self._seed, number))
            self._pass, self._order = number, torch.randperm(len(self._data), generator=generator).tolist()
        return {**self._data[self._order[offset]], "index": place}


class Places(Sampler[list[int]]):
    """The places of each micro-batch of one process, from a given step on."""

    def __init__(self, run: Run, start: int, share: int, rank: int, micro: int) -> None:
        self._run, self._start, self._share, self._rank, self._micro = run, start, share, rank, micro

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._start, self._run.steps):
            first = step * self._run.batch_size + self._rank * self._share
            for i in range(first, first + self._share, self._micro):
                yield list(range(i, i + self._micro))


def batches(
    stream: Stream, run: Run, start: int, share: int, rank: int, micro: int
) -> Iterator[tuple[int, list[dict[str, Tensor]]]]:
    """(step, its micro-batches) for the process `rank`, whose share of the global batch is `share` samples."""
    loader = DataLoader(stream, batch_sampler=Places(run, start, share, rank, micro), num_workers=run.workers)
    items = iter(loader)
    for step in range(start, run.steps):
        yield step, [next(items) for _ in range(share // micro)]

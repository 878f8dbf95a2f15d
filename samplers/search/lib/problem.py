"""What a search is given and what it gives back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gen.config.errors import UserError

__all__ = ["Candidate", "Fitness", "Found", "Problem", "pool_of"]


class Candidate(NamedTuple):
    """Indices into the pool of times, both ends included; and which (step, block) pairs compute, row by row."""

    places: tuple[int, ...]
    mask: tuple[bool, ...] = ()


# (times [steps + 1], mask [steps, blocks] or None) -> a number, the lower the better
Fitness = Callable[[Tensor, Tensor | None], float]


@dataclass(frozen=True, eq=False)
class Problem:
    """Choose steps - 1 times between the ends of a pool of falling times, float64 [M]; and, if blocks > 0, a mask.

    fitness: what is minimised. known: grids to begin with, whose times must be in the pool. costs: float64 [M, M] of
    one step from pool[i] to pool[j], for searches that add costs up. keep: how many of steps * blocks are computed.
    """

    pool: Tensor
    steps: int
    fitness: Fitness
    known: Sequence[Tensor] = ()
    costs: Callable[[], Tensor] | None = None
    blocks: int = 0
    keep: int = 0

    def __post_init__(self) -> None:
        if self.pool.ndim != 1 or not bool((self.pool.diff() < 0).all()):
            raise UserError(f"search: the pool is not a row of falling times: {self.pool.tolist()}")
        if not 1 <= self.steps < len(self.pool):
            raise UserError(f"search: {self.steps} steps need a pool of at least {self.steps + 1} times, and 1 step")
        if self.blocks and not 1 <= self.keep <= self.steps * self.blocks:
            raise UserError(f"search: keep = {self.keep}; allowed: 1 .. {self.steps} steps x {self.blocks} blocks")

    def times(self, candidate: Candidate) -> Tensor:
        """Its grid, float64 [steps + 1]."""
        return self.pool[list(candidate.places)]

    def mask(self, candidate: Candidate) -> Tensor | None:
        """Its mask, bool [steps, blocks]; None where no blocks are searched."""
        return torch.tensor(candidate.mask).reshape(self.steps, self.blocks) if self.blocks else None

    def value(self, candidate: Candidate) -> float:
        """Its fitness; what is not a number counts as the worst."""
        value = float(self.fitness(self.times(candidate), self.mask(candidate)))
        return value if value == value else float("inf")

    def places(self, times: Tensor) -> tuple[int, ...]:
        """A grid as indices, its ends moved to those of the pool."""
        inner = [int((self.pool - t).abs().argmin()) for t in times[1:-1]]
        places = (0, *inner, len(self.pool) - 1)
        if len(times) != self.steps + 1 or sorted(set(places)) != list(places):
            raise UserError(f"search: the known grid {times.tolist()} is not {self.steps} steps between pool times")
        return places

    def found(self, values: Mapping[Candidate, float], history: Sequence[tuple[int, float]]) -> Found:
        """The best of what was evaluated."""
        best = min(values, key=values.__getitem__)
        mask = self.mask(best)
        return Found(
            times=tuple(self.times(best).tolist()),
            fitness=values[best],
            mask=None if mask is None else tuple(tuple(row) for row in mask.tolist()),
            history=tuple(history),
            evaluations=len(values),
        )


@dataclass(frozen=True)
class Found:
    """A grid, and a mask if blocks were searched: mask[step][block] says what is computed.

    history: (evaluations so far, the best fitness among them), generation by generation.
    """

    times: tuple[float, ...]
    fitness: float
    mask: tuple[tuple[bool, ...], ...] | None = None
    history: tuple[tuple[int, float], ...] = ()
    evaluations: int = field(default=0)

    def write(self, file: str | Path, **about: Any) -> None:
        """As JSON that the grid `searched` reads; `about` adds what it was found for: path, solver, sites."""
        found = {
            "times": self.times,
            "mask": self.mask,
            "fitness": self.fitness,
            "evaluations": self.evaluations,
            "history": self.history,
        }
        Path(file).write_text(json.dumps({**about, **found}, indent=1) + "\n", encoding="utf-8")


def pool_of(grids: Sequence[Tensor]) -> Tensor:
    """All times of some grids, each once, from the first time of the first grid to 0; float64 [M]."""
    first = float(grids[0][0])
    times = sorted({float(t) for grid in grids for t in grid if float(t) < first}, reverse=True)
    distinct = [first]
    for t in times:
        if t < distinct[-1] - 1e-9 * first or t == 0:  # the same time, reached by other arithmetic
            distinct.append(t)
    return torch.tensor(distinct, dtype=torch.float64)

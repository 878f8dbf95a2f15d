"""The problem of a schedule search, its candidates and its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.config.formats import NEWEST
from gen.config.writing import write_json

__all__ = ["Candidate", "Fitness", "Problem", "SearchMethod", "SearchResult", "pool_of"]


class Candidate(NamedTuple):
    """A grid, and a mask if blocks are searched.

    Attributes:
        indices: of the grid's times in the pool, both ends included.
        mask: True for each (step, block) that is computed, row by row.
    """

    indices: tuple[int, ...]
    mask: tuple[bool, ...] = ()


# (times [steps + 1], mask [steps, blocks] or None) -> a number, the lower the better
Fitness = Callable[[Tensor, Tensor | None], float]


@dataclass(frozen=True, eq=False)
class Problem:
    """Choose steps - 1 times between the ends of a pool of times; and, if blocks > 0, a mask.

    Attributes:
        pool: falling times, float64 [M].
        steps: of the grid.
        fitness: what is minimised.
        known: grids to begin with, whose times must be in the pool.
        costs: float64 [M, M] of one step from pool[i] to pool[j], for searches that add costs up; None for no such.
        blocks: how many a mask may leave out; 0 for no mask.
        keep: how many of steps * blocks are computed.
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
        """Return a candidate's grid, float64 [steps + 1]."""
        return self.pool[list(candidate.indices)]

    def mask(self, candidate: Candidate) -> Tensor | None:
        """Return a candidate's mask, bool [steps, blocks]; None where no blocks are searched."""
        return torch.tensor(candidate.mask).reshape(self.steps, self.blocks) if self.blocks else None

    def value(self, candidate: Candidate) -> float:
        """Return a candidate's fitness; NaN counts as the worst."""
        value = float(self.fitness(self.times(candidate), self.mask(candidate)))
        return value if value == value else float("inf")

    def indices(self, times: Tensor) -> tuple[int, ...]:
        """Return a grid as indices, its ends moved to those of the pool."""
        inner = [int((self.pool - t).abs().argmin()) for t in times[1:-1]]
        indices = (0, *inner, len(self.pool) - 1)
        if len(times) != self.steps + 1 or sorted(set(indices)) != list(indices):
            raise UserError(f"search: the known grid {times.tolist()} is not {self.steps} steps between pool times")
        return indices

    def result(self, values: Mapping[Candidate, float], history: Sequence[tuple[int, float]]) -> SearchResult:
        """Return the best of the candidates that were evaluated."""
        best = min(values, key=values.__getitem__)
        mask = self.mask(best)
        return SearchResult(
            times=tuple(self.times(best).tolist()),
            fitness=values[best],
            mask=None if mask is None else tuple(tuple(row) for row in mask.tolist()),
            history=tuple(history),
            evaluations=len(values),
        )


@dataclass(frozen=True)
class SearchResult:
    """A grid, and a mask if blocks were searched.

    Attributes:
        times: the grid, falling.
        fitness: its fitness.
        mask: mask[step][block] is True for what is computed; None for no mask.
        history: (evaluations so far, the best fitness among them), generation by generation.
        evaluations: of the fitness.
    """

    times: tuple[float, ...]
    fitness: float
    mask: tuple[tuple[bool, ...], ...] | None = None
    history: tuple[tuple[int, float], ...] = ()
    evaluations: int = 0

    def write(self, file: str | Path, **about: Any) -> None:
        """Write JSON that the grid `searched` reads; `about` adds what was searched for: path, solver, sites."""
        write_json(Path(file), {"format": NEWEST["search"], **about, **asdict(self)})


class SearchMethod(Protocol):
    """A way to choose a grid, and a mask, of small fitness: a frozen dataclass."""

    def search(self, problem: Problem) -> SearchResult:
        """Return the best candidate that it finds; the same one for the same problem.

        Args:
            problem: pool of times, number of steps, fitness.
        """
        ...


def pool_of(grids: Sequence[Tensor]) -> Tensor:
    """Return all times of some grids, each once, from the first time of the first grid to 0; float64 [M].

    Args:
        grids: falling times, [N + 1] each.
    """
    first = float(grids[0][0])
    times = sorted({float(t) for grid in grids for t in grid if float(t) < first}, reverse=True)
    distinct = [first]
    for t in times:
        if t < distinct[-1] - 1e-9 * first or t == 0:  # the same time, reached by other arithmetic
            distinct.append(t)
    return torch.tensor(distinct, dtype=torch.float64)

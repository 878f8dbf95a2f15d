"""The best grid, and the best mask of blocks, by trial and descent."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from gen.config.errors import UserError
from gen.config.fields import check_fields
from gen.samplers.search.lib.problem import Candidate, Problem, SearchResult

__all__ = ["Evolution"]

TRIES = 20  # at a candidate that is new


@dataclass(frozen=True)
class Evolution:
    """AutoDiffusion's evolutionary search (Li et al. 2023, section 3.3), for any fitness.

    The first generation is the known grids, mutations of them, and random ones; each later one has `mutations` and
    `crossovers` of the best `parents` so far, and random ones up to `population`. No candidate is evaluated twice, and
    the best always survives: the result is no worse than a known grid. It ends after `budget` evaluations, or when all
    were seen. A mask has exactly problem.keep blocks computed; a mutation swaps a few.

    Attributes:
        budget: evaluations of the fitness.
        population, parents, mutations, crossovers: of a generation.
        rate: the chance that a mutation moves a time, half the time to anywhere and half to a near one, in (0, 1].
        seed: decides the result.
    """

    budget: int = 500
    population: int = 50
    parents: int = 10
    mutations: int = 25
    crossovers: int = 15
    rate: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, budget="[1, inf)", population="[1, inf)", parents="[1, inf)", rate="(0, 1]")
        if self.mutations < 0 or self.crossovers < 0 or self.mutations + self.crossovers > self.population:
            raise UserError(
                f"Evolution: mutations = {self.mutations}, crossovers = {self.crossovers}; "
                f"they must add up to at most population = {self.population}"
            )

    def search(self, problem: Problem) -> SearchResult:
        breeder = Breeder(problem, random.Random(self.seed), self.rate)
        known = [Candidate(problem.indices(times), breeder.random_mask()) for times in problem.known]
        values: dict[Candidate, float] = {}
        history: list[tuple[int, float]] = []
        generation = self.first(breeder, known)
        while generation:
            for candidate in generation[: self.budget - len(values)]:
                values[candidate] = problem.value(candidate)
            history.append((len(values), min(values.values())))
            if len(values) >= self.budget:
                break
            best = sorted(values, key=values.__getitem__)[: self.parents]
            generation = self.next(breeder, best, values)
        return problem.result(values, history)

    def first(self, breeder: Breeder, known: list[Candidate]) -> list[Candidate]:
        candidates = dict.fromkeys(known)
        if known:
            breeder.add(candidates, lambda: breeder.mutate(breeder.pick(known)), self.mutations)
        breeder.add(candidates, breeder.random, self.population - len(candidates))
        return list(candidates)

    def next(self, breeder: Breeder, best: list[Candidate], values: dict[Candidate, float]) -> list[Candidate]:
        """Return a generation of new candidates; empty if it finds no more."""
        candidates = dict.fromkeys(values)
        breeder.add(candidates, lambda: breeder.mutate(breeder.pick(best)), self.mutations)
        breeder.add(candidates, lambda: breeder.cross(breeder.pick(best), breeder.pick(best)), self.crossovers)
        breeder.add(candidates, breeder.random, self.population + len(values) - len(candidates))
        return list(candidates)[len(values) :]


@dataclass(frozen=True, eq=False)
class Breeder:
    """The variation operators of one problem's candidates."""

    problem: Problem
    rng: random.Random
    rate: float

    def add(self, candidates: dict[Candidate, None], make: Callable[[], Candidate], count: int) -> None:
        """Add up to `count` candidates that are new."""
        for _ in range(max(0, count)):
            tries = (make() for _ in range(TRIES))
            fresh = next((c for c in tries if c not in candidates), None)
            if fresh is not None:
                candidates[fresh] = None

    def pick(self, among: list[Candidate]) -> Candidate:
        return self.rng.choice(among)

    def random(self) -> Candidate:
        return Candidate(self.with_ends(set()), self.random_mask())

    def mutate(self, parent: Candidate) -> Candidate:
        last = len(self.problem.pool) - 1
        inner = set()
        for i in parent.indices[1:-1]:
            if self.rng.random() < self.rate:
                near = i + self.rng.choice((-3, -2, -1, 1, 2, 3))
                i = min(max(near, 1), last - 1) if self.rng.random() < 0.5 else self.rng.randrange(1, last)
            inner.add(i)
        mask = list(parent.mask)
        for _ in range(self.rng.randint(0, 3) if any(mask) and not all(mask) else 0):
            on, off = (self.rng.choice([i for i, m in enumerate(mask) if m == want]) for want in (True, False))
            mask[on], mask[off] = False, True
        return Candidate(self.with_ends(inner), tuple(mask))

    def cross(self, a: Candidate, b: Candidate) -> Candidate:
        """Return a candidate with each time and each block from either parent."""
        inner = {self.rng.choice(pair) for pair in zip(a.indices[1:-1], b.indices[1:-1], strict=True)}
        mask = [self.rng.choice(pair) for pair in zip(a.mask, b.mask, strict=True)]
        return Candidate(self.with_ends(inner), self.kept(mask))

    def with_ends(self, inner: set[int]) -> tuple[int, ...]:
        """Return the indices, filled up at random to the number of steps, between the ends of the pool."""
        last = len(self.problem.pool) - 1
        free = [i for i in range(1, last) if i not in inner]
        filled = [*inner, *self.rng.sample(free, self.problem.steps - 1 - len(inner))]
        return (0, *sorted(filled), last)

    def random_mask(self) -> tuple[bool, ...]:
        return self.kept([True] * self.problem.steps * self.problem.blocks)

    def kept(self, mask: list[bool]) -> tuple[bool, ...]:
        """Return the mask with entries switched at random until exactly `keep` are on."""
        while mask and sum(mask) != self.problem.keep:
            wrong = sum(mask) > self.problem.keep
            mask[self.rng.choice([i for i, m in enumerate(mask) if m == wrong])] = not wrong
        return tuple(mask)

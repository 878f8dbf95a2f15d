"""The best grid, if the costs of its steps add up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError
from gen.samplers.search.lib.problem import Candidate, Problem, SearchResult

__all__ = ["Dynamic", "cheapest_path"]


@dataclass(frozen=True)
class Dynamic:
    """Dynamic programming over the times of the pool (GITS, Chen et al. 2024; DM-NonUniform, Xue et al. 2024).

    Minimises the sum over steps of the problem's cost table, exactly, and evaluates the fitness of the result once. The
    cost of a step does not depend on what follows it, so the result is a good beginning and `evolution` may end lower.
    """

    def search(self, problem: Problem) -> SearchResult:
        if problem.costs is None:
            raise UserError("Dynamic adds up costs of single steps; this fitness has none: use evolution")
        if problem.blocks:
            raise UserError("Dynamic searches times only; use evolution for masks")
        best = Candidate(cheapest_path(problem.costs(), problem.steps))
        value = problem.value(best)
        return problem.result({best: value}, [(1, value)])


def cheapest_path(costs: Tensor, steps: int) -> tuple[int, ...]:
    """Return the indices from 0 to M - 1, in rising steps, whose costs add up to the least.

    Args:
        costs: of a step from i to j, [M, M].
        steps: how many.
    """
    m = len(costs)
    ahead = torch.ones(m, m).triu(1).bool()
    costs = costs.double().masked_fill(~ahead, torch.inf)
    total, previous = costs[0], []
    for _ in range(steps - 1):
        total, before = (total[:, None] + costs).min(0)
        previous.append(before)
    indices = [m - 1]
    for before in reversed(previous):
        indices.append(int(before[indices[-1]]))
    return (0, *reversed(indices))

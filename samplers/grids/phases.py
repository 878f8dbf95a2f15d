"""The steps of a loop shared out between the phases of a path."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.config.errors import UserError, shown
from gen.config.fields import check_fields
from gen.config.spec import part
from gen.diffusion.contracts import Grid
from gen.diffusion.path import NoisePath
from gen.samplers.grids.linear import Linear

__all__ = ["Phases"]


@dataclass(frozen=True)
class Phases:
    """Another grid in each phase between the path's knots, where a stage begins; the whole loop where it has none.

    Attributes:
        shares: of the steps, in proportion, one for each phase; () gives the first 3/4 and the others the rest, which
            is the 30 + 10 of decomposable flow matching (Haji-Ali et al. 2025); (4, 1) is its public code's 40 + 10.
        inner: the times within a phase, as fractions of it.
    """

    shares: tuple[float, ...] = ()
    inner: Grid = part("samplers.grids", default=Linear())

    def __post_init__(self) -> None:
        check_fields(self, shares="(0, inf)")

    def times(self, path: NoisePath, steps: int) -> Tensor:
        ends = [path.t1, *path.knots, 0.0]
        counts = self.counts(len(ends) - 1, steps)
        times = [torch.tensor([path.t1], dtype=torch.float64)] if len(counts) > 1 else []
        for n, (top, low) in zip(counts, itertools.pairwise(ends), strict=True):
            share = self.inner.times(path, n) / path.t1
            inside = low + (top - low) * share
            if len(counts) == 1:
                return inside
            if low:
                inside[-1] = low  # exactly, since loops look for it
            times.append(inside[1:])
        return torch.cat(times)

    def counts(self, phases: int, steps: int) -> list[int]:
        """Return the steps of each phase, at least one."""
        shares = self.shares or (3.0, *[1 / (phases - 1)] * (phases - 1)) if phases > 1 else self.shares or (1.0,)
        if len(shares) != phases:
            raise UserError(f"Phases: shares = {shown(self.shares)}; this path has {phases} phases, and needs as many")
        if steps < phases:
            raise UserError(f"Phases: {steps} steps; this path has {phases} phases, and each needs one")
        sums = [0.0, *itertools.accumulate(shares)]
        cuts = [0]
        for i, s in enumerate(sums[1:], 1):
            cuts.append(min(max(round(steps * s / sums[-1]), cuts[-1] + 1), steps - phases + i))
        return [after - before for before, after in itertools.pairwise(cuts)]

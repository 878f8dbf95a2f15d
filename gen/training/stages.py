"""Plans in stages: pure functions of the update count, of which what is to come may be planned anew."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Self

from gen.config.errors import UserError
from gen.config.fields import check_fields

__all__ = ["Stages"]


@dataclass(frozen=True)
class Stages:
    """A factor for each stage of a run.

    Attributes:
        ends: updates at which a stage ends, growing; the last stage ends with the run.
        factors: of each stage, one more than `ends`, positive.
    """

    ends: tuple[int, ...] = ()
    factors: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        check_fields(self, ends="[1, inf)", factors="(0, inf)")
        name = type(self).__name__
        if list(self.ends) != sorted(set(self.ends)):
            raise UserError(f"{name}: ends = {list(self.ends)}; they must grow")
        if len(self.factors) != len(self.ends) + 1:
            raise UserError(
                f"{name}: factors = {list(self.factors)} for ends = {list(self.ends)}; they must be one more"
            )

    def at(self, update: int) -> float:
        """Return the factor of an update."""
        return self.factors[bisect_right(self.ends, update)]

    def until(self, update: int) -> Self:
        """Return the plan without the stages that begin at an update or later."""
        ends = tuple(end for end in self.ends if end < update)
        return replace(self, ends=ends, factors=self.factors[: len(ends) + 1])

    def then(self, end: int, factor: float) -> Self:
        """Return the plan with another stage, which begins at an update behind all others."""
        return replace(self, ends=(*self.ends, end), factors=(*self.factors, factor))

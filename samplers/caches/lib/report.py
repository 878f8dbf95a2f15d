"""What a cache did in one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Place", "Report"]


@dataclass(frozen=True)
class Place:
    """One evaluation of the network."""

    step: int
    stage: int
    branch: str
    t: float


@dataclass(frozen=True)
class Report:
    """What was computed, evaluation by evaluation and site by site.

    computed: for each evaluation and each site whether the network really computed it, sites in the network's order.
    A batch is computed as one: if one row needs it, it is computed, and the rows that did not need it keep their
    prediction, as they would have alone. asked: for each evaluation the share of rows that needed the whole of it.
    memory: bytes that the run holds at its end. measured: what a calibration found; empty otherwise.
    """

    steps: int
    places: tuple[Place, ...]
    sites: tuple[str, ...]
    computed: tuple[tuple[bool, ...], ...]
    asked: tuple[float, ...]
    memory: int = 0
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def evaluations(self) -> int:
        """Evaluations of the network, whole or not."""
        return len(self.places)

    @property
    def full(self) -> int:
        """Evaluations of which at least one row needed the whole."""
        return sum(share > 0 for share in self.asked)

    @property
    def fraction(self) -> float:
        """Full evaluations out of all."""
        return self.full / max(self.evaluations, 1)

    @property
    def fraction_per_row(self) -> float:
        """The mean of `asked`: what `fraction` would be if every row were a batch of its own."""
        return sum(self.asked) / max(self.evaluations, 1)

    @property
    def hits(self) -> int:
        """Computations saved: sites that were not computed, over all evaluations."""
        return sum(not done for row in self.computed for done in row)

    def json(self) -> dict[str, Any]:
        """All of it as JSON values, with the counts that follow from it."""
        counts = ("evaluations", "full", "fraction", "fraction_per_row", "hits")
        return {**asdict(self), **{name: getattr(self, name) for name in counts}}

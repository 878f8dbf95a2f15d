"""Report of a feature cache on one batch: what was computed, evaluation by evaluation and site by site."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gen.config.spec import Json
from gen.diffusion.tap import Context

__all__ = ["CacheReport"]


@dataclass(frozen=True, repr=False)
class CacheReport:
    """Record of one session of a cache.

    Rows that need an evaluation are computed apart where that is cheaper; elsewhere all are, and the rows that did not
    need it keep their prediction, as they would have alone.

    Attributes:
        steps: of the loop.
        contexts: one for each evaluation of the network, in their order.
        sites: those that the network met, in its order.
        computed: [evaluation][site], whether the network really computed it.
        share_needed: for each evaluation the share of rows that needed the whole of it, in [0, 1].
        memory: bytes that the session holds at its end.
        calibration: result of a calibrator; empty without one.
    """

    steps: int
    contexts: tuple[Context, ...]
    sites: tuple[str, ...]
    computed: tuple[tuple[bool, ...], ...]
    share_needed: tuple[float, ...]
    memory: int = 0
    calibration: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        saved = f"{self.hits} of {self.evaluations * len(self.sites)} sites saved"
        return f"CacheReport({self.full} of {self.evaluations} evaluations in full, {saved}, {self.memory:,} bytes)"

    @property
    def evaluations(self) -> int:
        """Evaluations of the network, whole or not."""
        return len(self.contexts)

    @property
    def full(self) -> int:
        """Evaluations of which at least one row needed the whole."""
        return sum(share > 0 for share in self.share_needed)

    @property
    def fraction(self) -> float:
        """Full evaluations out of all."""
        return self.full / max(self.evaluations, 1)

    @property
    def fraction_per_row(self) -> float:
        """The mean of `share_needed`: the share of single rows' evaluations that were needed whole."""
        return sum(self.share_needed) / max(self.evaluations, 1)

    @property
    def hits(self) -> int:
        """Computations saved: sites that were not computed, over all evaluations."""
        return sum(not done for row in self.computed for done in row)

    def json(self) -> Json:
        """Return all of it as JSON values, with the counts that follow from it."""
        counts = ("evaluations", "full", "fraction", "fraction_per_row", "hits")
        return {**asdict(self), **{name: getattr(self, name) for name in counts}}

"""TaylorSeer on one feature."""

from __future__ import annotations

from dataclasses import dataclass

from gen.samplers.caches.taylorseer import TaylorSeer

__all__ = ["TaylorSeerLite"]


@dataclass(frozen=True)
class TaylorSeerLite(TaylorSeer):
    """The last block's output alone is extrapolated between full steps: a skipped step runs no block at all.

    One feature in memory instead of two for each block. Along the coordinate "lam" it drifts less than
    along the step.

    Attributes:
        order, sites: see TaylorSeer, as all other fields.
    """

    order: int = 3
    sites: tuple[str, ...] = ("trunk",)

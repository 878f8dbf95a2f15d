"""Shares of samples, with their standard errors."""

from __future__ import annotations

from gen.eval.estimate import Estimate

__all__ = ["share"]


def share(hits: int, n: int) -> Estimate:
    """Return the share hits / n with its standard error.

    Agresti & Coull (1998): from two successes and two failures more, so that a share of 0 or 1 has an error too.

    Args:
        hits: samples that have a property.
        n: samples.
    """
    p = (hits + 2) / (n + 4)
    return Estimate(hits / n, (p * (1 - p) / (n + 4)) ** 0.5, n)

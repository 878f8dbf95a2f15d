"""A measured number with its uncertainty, and the one way in which such numbers are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Estimate", "mean_estimate", "ratio_estimate"]

MAX_DECIMALS = 6  # numbers that need more are shown with an exponent


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error, and the number of samples behind it.

    The error is that of drawing the samples again, the model and the reference being what they are.

    Attributes:
        value: the number itself.
        se: standard error, in the units of value; None if it is not known.
        n: number of samples.
    """

    value: float
    se: float | None
    n: int

    def minus(self, other: Estimate) -> Estimate:
        """Return the difference of two independent values."""
        return Estimate(self.value - other.value, math.hypot(self.se or 0.0, other.se or 0.0), min(self.n, other.n))

    def differs(self, other: Estimate) -> bool:
        """Return whether two values are at least two combined standard errors apart; else they are tied."""
        difference = self.minus(other)
        return abs(difference.value) >= 2 * (difference.se or 0.0)

    def parts(self, digits: int = 3, percent: bool = False) -> tuple[str, str]:
        """Return value and standard error as text, both to two significant digits of the latter.

        Without an error, or with one of 0, there are `digits` significant digits of the value and no second text.
        """
        scale = 100 if percent else 1
        value, se = scale * self.value, scale * (self.se or 0.0)
        if not se:
            decimals = digits - 1 - _exponent(value, digits)
            return (_fixed(value, decimals) if abs(decimals) <= MAX_DECIMALS + digits else f"{value:.{digits}g}"), ""
        decimals = 1 - _exponent(se, 2)
        if decimals > MAX_DECIMALS and not value:
            return "0", f"{se:.1e}"
        if decimals > MAX_DECIMALS:
            return f"{value:.{max(0, decimals + _exponent(value, 2))}e}", f"{se:.1e}"
        return _fixed(value, decimals), _fixed(se, decimals)

    def signed(self, percent: bool = False) -> str:
        """Return the value with its sign, to two significant digits of the error: "+0.10"."""
        value = self.parts(percent=percent)[0]
        return value if value.startswith("-") else f"+{value}"

    def text(self, digits: int = 3, percent: bool = False) -> str:
        """Return both parts in one text: "1.19 ± 0.12", "97.9 ± 1.1 %"."""
        return " ± ".join(filter(None, self.parts(digits, percent))) + (" %" if percent else "")


def mean_estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of a sample, with its standard error.

    Args:
        values: at least one number.
    """
    n, mean = len(values), sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values) / max(n - 1, 1)
    return Estimate(mean, math.sqrt(spread / n), n)


def ratio_estimate(top: Sequence[float], bottom: Sequence[float]) -> Estimate:
    """Return sum(top) / sum(bottom), with its standard error by the delta method.

    Args:
        top, bottom: as many numbers each, at least one; those of `bottom` have a positive sum.
    """
    n, value = len(top), sum(top) / sum(bottom)
    spread = sum((t - value * b) ** 2 for t, b in zip(top, bottom, strict=True)) / max(n - 1, 1)
    return Estimate(value, math.sqrt(spread / n) / (sum(bottom) / n), n)


def _exponent(value: float, digits: int) -> int:
    """Return the power of ten of a number's first digit, after rounding to so many significant digits."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2])


def _fixed(value: float, decimals: int) -> str:
    """Return a number with so many decimals; a negative number of them rounds to tens, hundreds ..."""
    return f"{round(value, decimals) + 0.0:,.{max(decimals, 0)}f}"

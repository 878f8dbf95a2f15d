"""Plots as data: scales, ticks and points, which the template pages/plot.html draws as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

__all__ = ["HEIGHT", "WIDTH", "Axis", "Plot", "Point", "Series", "tick_text"]

WIDTH, HEIGHT = 560, 342
LEFT, RIGHT, TOP, BOTTOM = 46, 544, 34, 286  # the plotting area


@dataclass(frozen=True)
class Point:
    """A measured point.

    Attributes:
        x, y: in data units.
        se: standard error of y.
        note: shown when the pointer rests on it.
    """

    x: float
    y: float
    se: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one name, joined in the order of x.

    Attributes:
        name: in the legend.
        points: in any order.
        style: index of its colour and shape.
    """

    name: str
    points: Sequence[Point]
    style: int = 0


@dataclass(frozen=True)
class Axis:
    """A scale from data to user units of the drawing.

    Attributes:
        low, high: data at the ends.
        start, end: user units of the ends.
        log: whether the scale is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, log: bool) -> Axis:
        """Return an axis with a margin around the values; a linear one starts at 0 unless something is below."""
        low, high = min(values), max(values)
        if log:
            margin = max((high / low) ** 0.07, 1.15)
            return cls(low / margin, high * margin, start, end, True)
        span = (high - min(low, 0)) or 1.0
        return cls(low - 0.06 * span if low < 0 else 0.0, high + 0.08 * span, start, end, False)

    def __call__(self, value: float) -> float:
        f: Callable[[float], float] = math.log if self.log else float
        value = min(max(value, self.low), self.high)
        share = (f(value) - f(self.low)) / (f(self.high) - f(self.low))
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 7) -> list[float]:
        """Return round numbers inside: on a wide enough log axis 1, 2, 5 times powers of ten, or these alone."""
        inside = [v for v in _round_numbers(-9, 12) if self.low <= v <= self.high]
        if self.log and len(inside) >= 3:
            tens = [v for v in inside if f"{v:e}".startswith("1.")]
            return inside if len(inside) <= most else tens
        step = next(s for s in _round_numbers(-9, 12) if (self.high - self.low) / s <= most)
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


@dataclass(frozen=True)
class Plot:
    """A drawing of y against x, with error bars of two standard errors.

    y is on a log scale if the values are positive and differ more than eightfold, unless `linear`.

    Attributes:
        title: for those who cannot see it.
        x, y: names of the axes.
        series: what is drawn.
        floor: y of a dashed line.
        floor_text: beside it.
        powers: whether ticks of x are powers of two.
        front: points of a Pareto front, joined by a broad band behind everything.
        linear: whether y stays linear.
        log_x: whether x is on a log scale.
        marks: whether points have marks; without, a line through them is all that is drawn.
    """

    title: str
    x: str
    y: str
    series: Sequence[Series]
    floor: float | None = None
    floor_text: str = ""
    powers: bool = False
    front: Sequence[Point] = ()
    linear: bool = False
    log_x: bool = True
    marks: bool = True

    @property
    def points(self) -> list[Point]:
        return [*(p for s in self.series for p in s.points), *self.front]

    @cached_property
    def across(self) -> Axis:
        return Axis.around([p.x for p in self.points], LEFT + 14, RIGHT - 10, self.log_x)

    @cached_property
    def up(self) -> Axis:
        heights = [p.y for p in self.points] + ([self.floor] if self.floor is not None else [])
        log = not self.linear and min(heights) > 0 and max(heights) > 8 * min(heights)
        return Axis.around(heights if log else [*heights, *(p.y + 2 * p.se for p in self.points)], BOTTOM, TOP + 8, log)

    def columns(self) -> list[float]:
        """Return the ticks of x."""
        twos = [2.0**k for k in range(-8, 24) if self.powers and self.across.low <= 2.0**k <= self.across.high]
        return twos if len(twos) > 1 else self.across.ticks()


def tick_text(value: float) -> str:
    """Return a tick's label: 0.5, 20, 1,000.

    Args:
        value: a round number.
    """
    return f"{value:,.0f}" if value >= 10 else f"{value:g}" if value < 1e-3 else f"{round(value, 6):g}"


def _round_numbers(low: int, high: int) -> list[float]:
    return [m * 10.0**e for e in range(low, high) for m in (1, 2, 5)]

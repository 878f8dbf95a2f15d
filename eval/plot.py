"""Plots as inline SVG, drawn by the page's own style sheet: no script, no font, no picture file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["STYLES", "Axis", "Point", "Series", "marker", "plot"]

WIDTH, HEIGHT = 560, 342
LEFT, RIGHT, TOP, BOTTOM = 46, 544, 34, 286  # the plotting area
STYLES = 6  # colours s0 .. s5 of the style sheet; shapes take turns too, so nothing is told by colour alone


@dataclass(frozen=True)
class Point:
    """A value y at x, with a standard error, and what to say when the pointer rests on it."""

    x: float
    y: float
    se: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Points of one name, joined in the order of x. style: its place among the colours and shapes."""

    name: str
    points: Sequence[Point]
    style: int = 0


@dataclass(frozen=True)
class Axis:
    """From data to the page. low, high: data at the ends `start` and `end`, in user units of the drawing."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, log: bool) -> Axis:
        """With a margin around the values; a linear axis starts at 0 unless something is below."""
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
        """Round numbers inside: on a wide enough log axis 1, 2, 5 times powers of ten, or these alone."""
        inside = [v for v in _round_numbers(-9, 12) if self.low <= v <= self.high]
        if self.log and len(inside) >= 3:
            tens = [v for v in inside if f"{v:e}".startswith("1.")]
            return inside if len(inside) <= most else tens
        step = next(s for s in _round_numbers(-9, 12) if (self.high - self.low) / s <= most)
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def plot(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    title: str,
    floor: float | None = None,
    powers: bool = False,
    front: Sequence[Point] = (),
    linear: bool = False,
) -> str:
    """An SVG of y against x, x on a log scale, error bars of two standard errors, and a dashed line at the floor.

    y is on a log scale if the values differ more than eightfold and are positive, unless linear. powers: ticks of x at
    powers of two. front: points of a Pareto front, joined by a broad band behind everything.
    """
    points = [*(p for s in series for p in s.points), *front]
    heights = [p.y for p in points] + ([floor] if floor is not None else [])
    log = not linear and min(heights) > 0 and max(heights) > 8 * min(heights)
    ends = heights if log else [*heights, *(p.y + 2 * p.se for p in points)]
    across = Axis.around([p.x for p in points], LEFT + 14, RIGHT - 10, True)
    up = Axis.around(ends, BOTTOM, TOP + 8, log)
    columns = [2.0**k for k in range(-8, 24) if powers and across.low <= 2.0**k <= across.high]
    columns = columns if len(columns) > 1 else across.ticks()
    parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts += [f"<title>{escape(title)}</title>"]
    parts += [_grid(up(v), number(v)) for v in up.ticks()]
    parts += [_tick(across(v), number(v)) for v in columns]
    parts.append(f'<line class="axis" x1="{LEFT}" y1="{BOTTOM}" x2="{RIGHT}" y2="{BOTTOM}"/>')
    if floor is not None:
        parts.append(_floor(up(floor), floor))
    if front:
        path = " ".join(f"{across(p.x):.1f},{up(p.y):.1f}" for p in sorted(front, key=lambda p: p.x))
        parts.append(f'<polyline class="front" points="{path}"/>')
    for s in series:
        parts.append(_series(s, across, up))
    parts.append(f'<text class="title" x="0" y="14">{escape(y)}</text>')
    parts.append(f'<text class="title" x="{RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{escape(x)}</text></svg>')
    return "".join(parts)


def marker(style: int, x: float, y: float, r: float = 4.5) -> str:
    """A point: the shapes take turns with the colours."""
    shapes = {
        0: [(math.cos(a * math.pi / 12), math.sin(a * math.pi / 12)) for a in range(24)],
        1: [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
        2: [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        3: [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        4: [(0, 1.2), (1.1, -0.8), (-1.1, -0.8)],
    }
    corners = " ".join(f"{x + r * a:.1f},{y + r * b:.1f}" for a, b in shapes[style % len(shapes)])
    return f'<polygon class="mark s{style % STYLES}" points="{corners}"/>'


def number(value: float) -> str:
    """A tick's label: 0.5, 20, 1,000."""
    return f"{value:,.0f}" if value >= 10 else f"{value:g}" if value < 1e-3 else f"{round(value, 6):g}"


def _series(series: Series, across: Axis, up: Axis) -> str:
    style = f"s{series.style % STYLES}"
    points = sorted(series.points, key=lambda p: p.x)
    path = " ".join(f"{across(p.x):.1f},{up(p.y):.1f}" for p in points)
    parts = [f'<polyline class="line {style}" points="{path}"/>'] if len(points) > 1 else []
    for p in points:
        x, y, low, high = across(p.x), up(p.y), up(p.y - 2 * p.se), up(p.y + 2 * p.se)
        bar = f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6"
        note = escape(f"{series.name}: {p.note}" if p.note else series.name)
        parts.append(f'<g><title>{note}</title><path class="bar {style}" d="{bar}"/>{marker(series.style, x, y)}</g>')
    return "".join(parts)


def _grid(y: float, text: str) -> str:
    line = f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{RIGHT}" y2="{y:.1f}"/>'
    return f'{line}<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'


def _tick(x: float, text: str) -> str:
    line = f'<line class="axis" x1="{x:.1f}" y1="{BOTTOM}" x2="{x:.1f}" y2="{BOTTOM + 5}"/>'
    return f'{line}<text class="tick" x="{x:.1f}" y="{BOTTOM + 19}" text-anchor="middle">{text}</text>'


def _floor(y: float, value: float) -> str:
    line = f'<line class="floor" x1="{LEFT}" y1="{y:.1f}" x2="{RIGHT}" y2="{y:.1f}"/>'
    return f'{line}<text class="tick" x="{LEFT + 6}" y="{y - 6:.1f}">real images {value:.2f}</text>'


def _round_numbers(low: int, high: int) -> list[float]:
    return [m * 10.0**e for e in range(low, high) for m in (1, 2, 5)]

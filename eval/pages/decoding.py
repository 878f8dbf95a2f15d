"""The page of measured decoders: success against tokens per forward and against speed, a table for each task."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from gen.config.spec import Json
from gen.eval.decoding import DecodingRecord, curves, group_by_protocol, undominated
from gen.eval.pages import render
from gen.eval.plot import Plot, Point, Series

__all__ = ["decoding_page"]


def decoding_page(records: Sequence[DecodingRecord], title: str = "Decoding") -> str:
    """Return the whole document; every word that comes from a record is escaped, and nothing is loaded.

    Args:
        records: of any tasks.
        title: of the page.
    """
    groups = [_context(group) for group in group_by_protocol(records)]
    return render("decoding.html", {"title": title, "count": len(records), "groups": groups})


def _context(group: Sequence[DecodingRecord]) -> Json:
    """Return what the template shows of one task."""
    found, several = curves(group), len({r.run for r in group}) > 1
    names = [f"{curve.run}, {curve.name}" if several else curve.name for curve in found]
    bound = next((r.bound for r in group if r.bound), None)
    band = [] if bound is None else bound_points(bound, min(r.percent[0] for r in group))

    def plot(words: str, axis: str, front: Sequence[Point]) -> Plot:
        series = [
            Series(name, [_point(r, words) for r in curve.records], i)
            for i, (name, curve) in enumerate(zip(names, found, strict=True))
        ]
        title = f"Success against {words}, {group[0].task}"
        return Plot(title, f"{axis} (log)", "success, %", series, front=front, linear=True)

    def common(name: str) -> str:
        values = {getattr(record, name) for record in group}
        return "" if len(values) > 1 or None in values else str(values.pop())

    return {
        "first": group[0],
        "curves": list(zip(names, found, strict=True)),
        "front": [id(r) for r in undominated(group)],
        "plots": [plot("tokens per forward", "tokens per forward", band), plot("speed", "tokens per second", [])],
        "band": "best possible with an exact model at temperature 1" if band else "",
        "common": {name: common(name) for name in ("batch", "seed", "device")},
        "id": id,
    }


def _point(record: DecodingRecord, words: str) -> Point:
    rate, success = record.percent
    x = rate if words == "tokens per forward" else record.tokens_per_second
    note = f"{record.label}, {record.success.text(percent=True)}, {record.tokens_per_forward.text()} tokens per forward"
    return Point(x, success, 100 * (record.success.se or 0.0), note)


def bound_points(bound: Sequence[tuple[float, float]], least: float, between: int = 8) -> list[Point]:
    """Return the bound from its corners: level to the left of the first, and straight in forwards between them."""
    points = [Point(min(least, bound[0][0]), 100 * bound[0][1])]
    for (rate, success), (faster, less) in itertools.pairwise(bound):
        for k in range(between):
            share = k / between
            forwards = (1 - share) / rate + share / faster
            points.append(Point(1 / forwards, 100 * ((1 - share) * success + share * less)))
    return [*points, Point(bound[-1][0], 100 * bound[-1][1])]

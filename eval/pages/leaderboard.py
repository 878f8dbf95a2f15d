"""The leaderboard's page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby

from gen.config.spec import Json
from gen.eval.pages import render
from gen.eval.plot import Plot, Point, Series
from gen.eval.ranking import Group, Ranking, claimed, equal_time_rival, estimate_in, origin, pareto_front
from gen.eval.record import Measurement, Record
from gen.eval.sampler_text import sampler_text

__all__ = ["leaderboard_page"]

MANY_SITES = 24  # of more, only the blocks are named


def leaderboard_page(shown: Ranking, title: str) -> str:
    """Return the whole document; every word that comes from a record is escaped, and nothing is loaded.

    Its script sorts, filters and hides columns; without it every table is whole.

    Args:
        shown: ranked records, published rows and arenas.
        title: of the page.
    """
    columns = {m.column.key: m.column for group in shown.groups for m in group.columns}
    functions = (claimed, equal_time_rival, estimate_in, label_rows, origin, pareto_front, plots, png_width)
    context = {"title": title, "shown": shown, "groups": shown.groups, "columns": columns.values()}
    return render("leaderboard.html", context | {f.__name__: f for f in functions}, script="leaderboard.js")


def plots(group: Group) -> Json:
    """Return the names of the series, and the ranking metric against NFE and against speed.

    Rows of one run and one kind of sampler are joined. Cached rows, whose evaluations are not whole ones, stand only
    against speed, where the Pareto front is shown; samples of other tools have neither number and no mark.
    """
    measured = group.ranked_by or group.columns[0]
    column, floor = measured.column, group.floor(measured)
    members: dict[str, list[Record]] = {}
    for row in group.rows:
        members.setdefault(_family(row.record, group), []).append(row.record)
    direction = {None: "", True: ", higher is better", False: ", lower is better"}[column.higher_is_better]
    front = [row.record for row in pareto_front(group)] if group.cached else []
    axes: tuple[tuple[str, str, Callable[[Record], float]], ...] = (
        ("NFE", "network evaluations per image", lambda r: 0 if r.cache else r.nfe or 0),
        ("images per second", "images per second", lambda r: r.speed.images_per_second if r.speed else 0),
    )
    shown = [item for item in members.items() if any(x(record) for _, _, x in axes for record in item[1])]
    families = sorted(shown, key=lambda item: -len(item[1]))
    drawn = []
    for words, axis, x in axes:
        series = [Series(name, _points(records, measured, x), i) for i, (name, records) in enumerate(families)]
        plot = Plot(
            title=f"{column.heading} against {words} on {group.first.reference.name}",
            x=f"{axis} (log)",
            y=f"{column.heading}{', %' if column.percent else ''}{direction}",
            series=[s for s in series if s.points],
            floor=column.scale * floor.value if floor else None,
            floor_text=f"real images {floor.parts(column.digits, column.percent)[0]}" if floor else "",
            powers=words == "NFE",
            front=[] if words == "NFE" else _points(front, measured, x),
        )
        drawn += [plot] if plot.series else []
    return {"names": [name for name, _ in families], "drawn": drawn}


def _points(records: Sequence[Record], measured: Measurement, x: Callable[[Record], float]) -> list[Point]:
    column, points = measured.column, []
    for record in records:
        estimate = estimate_in(record, measured)
        if estimate is not None and x(record) > 0:
            note = f"{origin(record)}, {column.heading} {column.text(estimate)}"
            y, se = column.scale * estimate.value, column.scale * (estimate.se or 0.0)
            points.append(Point(x(record), y, se, note))
    return points


def _family(record: Record, group: Group) -> str:
    """Return the run's name, or the label all its rows have; with the sampler where there are several kinds."""
    mine = [row.record for row in group.rows if row.record.run == record.run]
    kinds, labels = {_kind(r.brief or r.sampler) for r in mine}, {r.label for r in mine}
    name = record.label if len(labels) == 1 else record.run
    return name if len(kinds) == 1 else f"{name}, {_kind(record.brief or record.sampler)}"


def _kind(sampler: Json) -> str:
    """Return the kind of sampler: without its number of steps, and of a cache the name alone."""
    cache = sampler.get("cache")
    name = {"name": cache.get("name")} if isinstance(cache, Mapping) else cache
    return sampler_text({**sampler, "steps": None, "cache": name})


def label_rows(sites: Sequence[str]) -> list[tuple[str, int]]:
    """Return names and how many rows of a site map they stand for: each site's, or where there are many, each block's.

    As many as there is room for: rows are then 6 pixels high, or 3 (see gen.eval.pictures.heatmap), and a line is 12.
    """
    if len(sites) <= MANY_SITES:
        return [(site, 1) for site in sites]
    labels, room = [], 12
    for name, rows in groupby(sites, lambda site: ".".join(site.split(".")[:2])):
        count = len(list(rows))
        labels.append((name if room >= 12 else "", count))
        room = (0 if room >= 12 else room) + count * (6 if len(sites) <= 80 else 3)
    return labels


def png_width(png: str) -> int:
    """Return the width that the header of a PNG in base64 states."""
    return int.from_bytes(base64.b64decode(png)[16:20], "big")

"""Records to a leaderboard: one self-contained page, and the same numbers as .csv, .md and text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gen.config.fields import check_arguments
from gen.config.writing import write_text
from gen.eval.pages.leaderboard import leaderboard_page
from gen.eval.ranking import Group, Row, cell, equal_time_rival, estimate_in, groups, options, pareto_front
from gen.eval.record import Interval, Measurement, Record, collect, sampler_text
from gen.eval.tables import aligned, inert, markdown, markdown_text, one_line

__all__ = ["leaderboard", "table"]

SPEEDS = ("images_per_second", "ms_per_image", "p10", "p90", "peak_mb", "batch")
CACHE_HEADS = ("full steps", "c", "speed-up", "drift", "as fast uncached", "front")
CACHE_COLUMNS = {  # of .csv -> path in a CacheSaving
    "cache_fraction": "fraction",
    **{f"cache_{name}{end}": f"{name}.{part}" for name in ("c", "speedup")
       for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))},
    "cache_drift": "drift.rmse",
    "cache_psnr": "drift.psnr",
    "cache_equal_steps": "equal_steps",
    "cache_memory_mb": "memory_mb",
}  # fmt: skip
LEFT = (1, 2)  # columns of words; the others are numbers


@check_arguments()
def leaderboard(
    sources: object, out: str | Path = "leaderboard.html", title: str = "Leaderboard", rank_by: str | None = None
) -> Path:
    """Write the page, with .csv and .md beside it. Rows that are not comparable never share a table.

    Args:
        sources: records, .json files, run folders (their eval/*.json), a .toml list of entries, or several of these,
            of which those that hold none are passed over with a warning.
        out: the page, or a folder for leaderboard.html.
        title: of the page.
        rank_by: key of the column that ranks the rows, "recall"; by default the first with a direction.

    Returns:
        The page's path.

    Raises:
        UserError: naming the source, for what is no record, or was altered.
    """
    ranked = groups(collect(sources), rank_by)
    out = Path(out)
    if out.suffix != ".html":
        out = out / "leaderboard.html"
    write_text(out.with_suffix(".csv"), as_csv(ranked))
    write_text(out.with_suffix(".md"), as_markdown(ranked, title))
    write_text(out, leaderboard_page(ranked, title))
    return out


def table(sources: object, rank_by: str | None = None) -> str:
    """Return the leaderboard as plain text, for a terminal.

    Args:
        sources: as `leaderboard` takes them.
        rank_by: key of the column that ranks the rows.
    """
    parts = []
    for group in groups(collect(sources), rank_by):
        lines = text_cells(group)
        ends = range(len(lines[0]) - 1 - len(CACHE_HEADS) * group.cached, len(lines[0]))
        parts.append("\n".join([caption(group.first), *aligned(lines, (*LEFT, *ends))]))
    return "\n\n".join(parts)


def text_cells(group: Group) -> list[tuple[str, ...]]:
    """Return the heads, the floor row and every row, as text; with more columns if there are cached rows."""
    heads = ("#", "method", "sampler", "NFE", *map(one_line, group.headings()), "images/s", "params", "tie with")
    lines = [heads + (CACHE_HEADS if group.cached else ())]
    if group.has_floor:
        floors = (m.column.text(group.floor(m)) for m in group.columns)
        lines.append(("", "real images", "", "", *floors, *[""] * (len(lines[0]) - 4 - len(group.columns))))
    for row in group.rows:
        r = row.record
        lines.append((
            str(row.rank), one_line(r.label), one_line(sampler_text(r.sampler)), "" if r.nfe is None else f"{r.nfe:g}",
            *(m.column.text(estimate_in(r, m)) for m in group.columns),
            f"{r.speed.images_per_second:,.0f}" if r.speed else "", "" if r.params is None else f"{r.params:,.0f}",
            row.tied("#"), *(cache_cells(group, row) if group.cached else ()),
        ))  # fmt: skip
    return lines


def cache_cells(group: Group, row: Row) -> tuple[str, ...]:
    """Return the cells under CACHE_HEADS, as text; empty but for the last if the row has no cache."""
    cache, front = row.record.cache, "front" if row in pareto_front(group) else ""
    if cache is None:
        return *("",) * (len(CACHE_HEADS) - 1), front
    rival = equal_time_rival(group, row)
    equal = "" if cache.equal_steps is None else f"{cache.equal_steps} steps" + (f" (#{rival.rank})" if rival else "")
    drift = cache.drift.estimate.text() if cache.drift else ""
    return f"{cache.fraction:.0%}", _interval(cache.c)[:4], _interval(cache.speedup), drift, equal, front


def as_markdown(ranked: Sequence[Group], title: str) -> str:
    """Return one table per group, and the commands."""
    parts = [f"# {markdown_text(title)}"]
    for group in ranked:
        lines = markdown(text_cells(group), LEFT)
        commands = [(r.rank, one_line(r.record.command).replace("`", "")) for r in group.rows if r.record.command]
        parts += [markdown_text(caption(group.first)), "\n".join(lines)]
        parts += ["\n".join(f"{rank}. `{command}`" for rank, command in commands)]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_csv(ranked: Sequence[Group]) -> str:
    """Return one line per row, every number in full."""
    columns: dict[str, Measurement] = {}
    for m in (m for group in ranked for m in group.columns):
        same = columns.setdefault(m.column.key, m).same_column(m)
        if not same:
            columns[f"{m.column.key}({options(m)})"] = m
    caches = any(group.cached for group in ranked)
    heads = ["comparability", "rank", "ties", "label", "run", "sampler", "nfe", "n", "seed"]
    heads += [key + end for key in columns for end in ("", "_se", "_floor")]
    heads += [*SPEEDS, "params", "device", "date", "command", *(CACHE_COLUMNS if caches else ())]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([inert(head) for head in heads])
    for row in (row for group in ranked for row in group.rows):
        r = row.record
        cells: list[Any] = [r.comparability, row.rank, " ".join(map(str, row.ties)), r.label, r.run]
        cells += [sampler_text(r.sampler), r.nfe, r.n, r.seed]
        for measured in (cell(r, column) for column in columns.values()):
            cells += [_at(measured, path) for path in ("estimate.value", "estimate.se", "floor.value")]
        cells += [_at(r.speed, name) for name in SPEEDS]
        cells += [r.params, r.device, r.date, r.command]
        cells += [_at(r.cache, path) for path in CACHE_COLUMNS.values()] if caches else []
        writer.writerow([inert(c) for c in cells])
    return file.getvalue()


def caption(record: Record) -> str:
    """Return what the rows of a table share, on one line."""
    reference, extractor = record.reference, record.extractor
    return one_line(
        f"{reference.data.get('name', '?')}, {reference.split} split ({reference.n} images); {record.n} samples; "
        f"features {extractor.name}; comparability {record.comparability}"
    )


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:.2f} ({interval.low:.2f} – {interval.high:.2f})"


def _at(thing: Any, path: str) -> Any:
    """Return the value at a path of attributes; None if one on the way is None."""
    for name in path.split("."):
        thing = None if thing is None else getattr(thing, name)
    return thing

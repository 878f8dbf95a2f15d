"""Records to a leaderboard: one self-contained page, and the same numbers as .csv, .md and text."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gen.config.errors import UserError
from gen.config.fields import check_arguments
from gen.config.spec import Json
from gen.config.writing import write_text
from gen.eval.arena.board import Standing, standing_cells
from gen.eval.pages.leaderboard import leaderboard_page
from gen.eval.published import Published
from gen.eval.ranking import (
    Group,
    Ranking,
    Row,
    cell,
    claimed,
    equal_time_rival,
    estimate_in,
    options,
    origin,
    pareto_front,
    ranking,
)
from gen.eval.record import Interval, Measurement, Record
from gen.eval.sources import collect_all
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
        sources: records, .json files, folders of runs or samples (their eval/*.json), .jsonl files of an arena's votes,
            .toml lists of entries and published rows, or several of these, of which those that hold none are passed
            over with a warning.
        out: the page, or a folder for leaderboard.html.
        title: of the page.
        rank_by: key of the column that ranks the rows, "recall"; by default the first with a direction.

    Returns:
        The page's path.

    Raises:
        UserError: naming the source, for what is no record, or was altered.
    """
    out = Path(out)
    if out.suffix not in ("", ".html") and not out.is_dir():
        raise UserError(f"out: {out}; give a page .html, .csv and .md are written beside it, or a folder")
    if out.suffix != ".html":
        out = out / "leaderboard.html"
    shown = ranking(collect_all(sources), rank_by)
    write_text(out.with_suffix(".csv"), as_csv(shown))
    write_text(out.with_suffix(".md"), as_markdown(shown, title))
    write_text(out, leaderboard_page(shown, title))
    return out


def table(sources: object, rank_by: str | None = None) -> str:
    """Return the leaderboard as plain text, for a terminal.

    Args:
        sources: as `leaderboard` takes them.
        rank_by: key of the column that ranks the rows.
    """
    parts = []
    shown = ranking(collect_all(sources), rank_by)
    for group in shown.groups:
        lines = text_cells(shown, group)
        ends = range(len(lines[0]) - 1 - len(CACHE_HEADS) * group.cached, len(lines[0]))
        parts.append("\n".join([one_line(caption(group.first)), *aligned(lines, (*LEFT, *ends))]))
    for words, lines, left in other_tables(shown):
        parts.append("\n".join([one_line(words), *aligned(lines, left)]))
    return "\n\n".join(parts)


def text_cells(shown: Ranking, group: Group) -> list[tuple[str, ...]]:
    """Return the heads, the floor row and every row, as text; with more columns if there are cached rows."""
    heads = ("#", "method", "sampler", "NFE", *map(one_line, group.headings()), "images/s", "params", "tie with")
    lines = [heads + (CACHE_HEADS if group.cached else ())]
    if group.has_floor:
        floors = (m.column.text(group.floor(m)) for m in group.columns)
        lines.append(("", "real images", "", "", *floors, *[""] * (len(lines[0]) - 4 - len(group.columns))))
    for row in group.rows:
        r = row.record
        lines.append((
            str(row.rank), one_line(r.label), one_line(origin(r)), _number(r.nfe),
            *(m.column.text(estimate_in(r, m)) for m in group.columns),
            f"{r.speed.images_per_second:,.0f}" if r.speed else "", _count(r.params),
            row.tied("#"), *(cache_cells(group, row) if group.cached else ()),
        ))  # fmt: skip
    for claim in group.published:
        values = [m.column.text(claimed(claim, m)) for m in group.columns]
        words = "; ".join(filter(None, (f"published: {claim.source}", shown.beside(claim, group.columns))))
        cells = ("", one_line(claim.label), one_line(words), _number(claim.nfe), *values, "")
        cells = (*cells, _count(claim.params))
        lines.append((*cells, *[""] * (len(lines[0]) - len(cells))))
    return lines


def other_tables(shown: Ranking) -> list[tuple[str, list[tuple[str, ...]], Collection[int]]]:
    """Return caption, heads with rows, and left columns of each table of published rows alone, and of each arena."""
    tables: list[tuple[str, list[tuple[str, ...]], Collection[int]]] = []
    for claims in shown.claims:
        heads = ("method", "published", "NFE", *map(shown.heading, claims.columns), "params")
        rows = [
            (
                r.label,
                r.source,
                _number(r.nfe),
                *(_number(r.numbers.get(key)) for key in claims.columns),
                _count(r.params),
            )
            for r in claims.rows
        ]
        lines = [tuple(map(one_line, row)) for row in (heads, *rows)]
        tables.append((f"published, not measured here: {claims.protocol or 'unknown protocol'}", lines, (0, 1)))
    for arena in shown.preferences:
        tables.append(
            (
                f"arena {arena.name}: {arena.votes:,} vote{'s' if arena.votes != 1 else ''}",
                standing_cells(arena.standings),
                (1, 5),
            )
        )
    return tables


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def cache_cells(group: Group, row: Row) -> tuple[str, ...]:
    """Return the cells under CACHE_HEADS, as text; empty but for the last if the row has no cache."""
    cache, front = row.record.cache, "front" if row in pareto_front(group) else ""
    if cache is None:
        return *("",) * (len(CACHE_HEADS) - 1), front
    rival = equal_time_rival(group, row)
    equal = "" if cache.equal_steps is None else f"{cache.equal_steps} steps" + (f" (#{rival.rank})" if rival else "")
    drift = cache.drift.estimate.text() if cache.drift else ""
    return f"{cache.fraction:.0%}", _interval(cache.c)[:4], _interval(cache.speedup), drift, equal, front


def as_markdown(shown: Ranking, title: str) -> str:
    """Return one table per group, and the commands."""
    parts = [f"# {markdown_text(title)}"]
    for group in shown.groups:
        lines = markdown(text_cells(shown, group), LEFT)
        commands = [(r.rank, one_line(r.record.command).replace("`", "")) for r in group.rows if r.record.command]
        parts += [markdown_text(caption(group.first)), "\n".join(lines)]
        parts += ["\n".join(f"{rank}. `{command}`" for rank, command in commands)]
    for words, cells, left in other_tables(shown):
        parts += [markdown_text(words), "\n".join(markdown(cells, left))]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_csv(shown: Ranking) -> str:
    """Return one line per row, every number in full; `kind` says whether it was measured, published, or voted for."""
    columns: dict[str, Measurement] = {}
    for m in (m for group in shown.groups for m in group.columns):
        same = columns.setdefault(m.column.key, m).same_column(m)
        if not same:
            columns[f"{m.column.key}({options(m)})"] = m
    lines = [_measured(row, columns) for group in shown.groups for row in group.rows]
    lines += [_published(row, group.first.comparability) for group in shown.groups for row in group.published]
    lines += [_published(row, "") for claims in shown.claims for row in claims.rows]
    lines += [_voted(standing) for arena in shown.preferences for standing in arena.standings]
    heads = ["kind", "comparability", "rank", "ties", "label", "run", "sampler", "nfe", "n", "seed"]
    heads += [key + end for key in columns for end in ("", "_se", "_floor")]
    last = [*SPEEDS, "params", "device", "date", "command", *CACHE_COLUMNS]
    more = [key for key in dict.fromkeys(key for line in lines for key in line) if key not in (*heads, *last)]
    if not any(group.cached for group in shown.groups):
        last = last[: -len(CACHE_COLUMNS)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([inert(head) for head in (*heads, *more, *last)])
    writer.writerows([inert(line.get(head)) for head in (*heads, *more, *last)] for line in lines)
    return file.getvalue()


def _measured(row: Row, columns: Mapping[str, Measurement]) -> Json:
    r = row.record
    line: Json = {"kind": "measured", "comparability": r.comparability, "rank": row.rank}
    line |= {"ties": " ".join(map(str, row.ties)), "sampler": origin(r)}
    line |= {
        key: getattr(r, key) for key in ("label", "run", "nfe", "n", "seed", "params", "device", "date", "command")
    }
    for key, column in columns.items():
        found = cell(r, column)
        ends = (("", "estimate.value"), ("_se", "estimate.se"), ("_floor", "floor.value"))
        line |= {key + end: _at(found, path) for end, path in ends}
    line |= {name: _at(r.speed, name) for name in SPEEDS}
    return line | {name: _at(r.cache, path) for name, path in CACHE_COLUMNS.items()}


def _published(row: Published, comparability: str) -> Json:
    fields = {key: getattr(row, key) for key in ("label", "nfe", "params", "source", "about")}
    fields["protocol"] = row.claim
    return {**row.numbers, "kind": "published", "comparability": comparability, "rank": "", "ties": "", **fields}


def _voted(row: Standing) -> Json:
    rating = {"arena_score": row.rating.score, "arena_mu": row.rating.mu, "arena_sigma": row.rating.sigma}
    ties = " ".join(map(str, row.ties))
    return {"kind": "voted", "rank": row.rank, "ties": ties, "label": row.model, "n": row.votes, **rating}


def caption(record: Record) -> str:
    """Return what the rows of a table share, on one line."""
    reference, extractor = record.reference, record.extractor
    return one_line(
        f"{reference.name}{reference.part} ({reference.n} images); {record.n} samples; "
        f"features {extractor.name}; comparability {record.comparability}"
    )


def _interval(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:.2f} ({interval.low:.2f} – {interval.high:.2f})"


def _at(thing: Any, path: str) -> Any:
    """Return the value at a path of attributes; None if one on the way is None."""
    for name in path.split("."):
        thing = None if thing is None else getattr(thing, name)
    return thing

"""Records to a leaderboard: one self-contained page, and the same numbers as .csv, .md and text."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from gen.eval import cached
from gen.eval.page import page
from gen.eval.ranking import Group, Row, groups
from gen.eval.record import Record, collect, number, sampler_text

__all__ = ["leaderboard", "table"]


def leaderboard(sources: Any, out: str | Path = "leaderboard.html", title: str = "Leaderboard") -> Path:
    """Writes the page to `out`, with .csv and .md beside it, and returns its path.

    sources: records, .json files, run folders (their eval/*.json), a .toml list of entries, or several of these. Rows
    that are not comparable never share a table. Raises UserError, naming the source, for what is no record.
    """
    found = groups(collect(sources))
    out = Path(out)
    if out.suffix != ".html":
        out = out / "leaderboard.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".csv", as_csv(found)), (".md", as_markdown(found, title)), (".html", page(found, title))):
        partial = out.with_name(f".partial-{out.stem}{suffix}-{os.getpid()}")
        partial.write_text(text, encoding="utf-8")
        partial.replace(out.with_suffix(suffix))
    return out


def table(sources: Any) -> str:
    """The leaderboard as plain text, for a terminal."""
    parts = []
    for group in groups(collect(sources)):
        record = group.rows[0].record
        lines = _cells(group)
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        text = [
            "  ".join(_pad(cell, w, i) for i, (cell, w) in enumerate(zip(line, widths, strict=True))) for line in lines
        ]
        text.insert(1, "  ".join("-" * w for w in widths))
        parts.append("\n".join([_caption(record), *(line.rstrip() for line in text)]))
    return "\n\n".join(parts)


HEADS = ("#", "method", "sampler", "NFE", "FID", "KID", "accuracy", "images/s", "params", "tie with")


def _cells(group: Group) -> list[tuple[str, ...]]:
    """The heads, the floor row and every row, as text; with more columns if there are cached rows."""
    first = group.rows[0].record

    def more(row: Row | None) -> tuple[str, ...]:
        return cached.cells(group, row) if group.cached else ()

    lines: list[tuple[str, ...]] = [(*HEADS, *(cached.HEADS if group.cached else ()))]
    if number(first, "floor", "fid", "value") is not None:
        lines.append(("", "real images", "", "", *_quality(first, "floor"), "", "", "", *more(None)))
    for row in group.rows:
        r = row.record
        speed, params = number(r, "speed", "images_per_second"), number(r, "params")
        lines.append((
            str(row.rank), _line(r["label"]), _line(sampler_text(r)), f"{r['nfe']:g}", *_quality(r, "metrics"),
            "" if speed is None else f"{speed:,.0f}", "" if params is None else f"{params:,.0f}",
            row.tied("#"), *more(row),
        ))  # fmt: skip
    return lines


def as_markdown(found: Sequence[Group], title: str) -> str:
    """One table per group."""
    parts = [f"# {_md(title)}"]
    for group in found:
        lines = _cells(group)
        text = ["| " + " | ".join(_md(cell) for cell in line) + " |" for line in lines]
        text.insert(1, "|" + "|".join(":--" if i in LEFT else "--:" for i in range(len(lines[0]))) + "|")
        commands = [
            f"{r.rank}. `{_line(r.record['command']).replace('`', '')}`" for r in group.rows if r.record.get("command")
        ]
        parts += [_md(_caption(group.rows[0].record)), "\n".join(text), "\n".join(commands)]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_csv(found: Sequence[Group]) -> str:
    """One line per row, every number in full."""
    metrics = [
        (m, p)
        for m in ("fid", "fid_train", "kid", "recall", "coverage", "accuracy", "nearest")
        for p in ("value", "se")
    ]
    speeds = ("images_per_second", "ms_per_image", "p10", "p90", "peak_mb", "batch")
    heads = ["comparability", "rank", "ties", "label", "run", "sampler", "nfe", "n", "seed"]
    heads += [m if p == "value" else f"{m}_se" for m, p in metrics]
    heads += [
        "fid_floor",
        "kid_floor",
        "accuracy_floor",
        "nearest_floor",
        *speeds,
        "params",
        "device",
        "date",
        "command",
    ]
    caches = any(group.cached for group in found)
    heads += cached.COLUMNS if caches else ()
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(heads)
    for group in found:
        for row in group.rows:
            r = row.record
            cells: list[Any] = [
                group.key,
                row.rank,
                " ".join(map(str, row.ties)),
                r["label"],
                r["run"],
                sampler_text(r),
            ]
            cells += [r["nfe"], r["n"], r.get("seed")]
            cells += [number(r, "metrics", *pair) for pair in metrics]
            cells += [number(r, "floor", m, "value") for m in ("fid", "kid", "accuracy", "nearest")]
            cells += [number(r, "speed", name) for name in speeds]
            cells += [r.get("params"), r.get("device"), r.get("date"), r.get("command")]
            writer.writerow([_inert(c) for c in [*cells, *(cached.values(r) if caches else ())]])
    return file.getvalue()


LEFT = (1, 2)  # columns of words; the others are numbers


def _quality(record: Record, group: str) -> tuple[str, str, str]:
    fid, kid = (_interval(record, group, name) for name in ("fid", "kid"))
    accuracy = number(record, group, "accuracy", "value")
    return fid, kid, "" if accuracy is None else f"{100 * accuracy:.1f} %"


def _interval(record: Record, group: str, name: str) -> str:
    value, se = number(record, group, name, "value"), number(record, group, name, "se")
    if value is None:
        return ""
    return f"{value:.2f}" if se is None else f"{value:.2f} ± {se:.2f}"


def _caption(record: Record) -> str:
    reference, extractor = record["reference"], record["extractor"]
    data = (reference.get("data") or {}).get("name", "?")
    return _line(
        f"{data}, {reference.get('split')} split ({reference.get('n')} images); {record['n']} samples; "
        f"features {extractor.get('name')}; comparability {record['comparability']}"
    )


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column in LEFT or column >= len(HEADS) - 1 else cell.rjust(width)


def _line(text: Any) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _md(text: str) -> str:
    """Words of a record that can be no markup: neither a cell's end nor a link, a picture or HTML."""
    return re.sub(r"([\\|`*\[\]])", r"\\\1", escape(_line(text), quote=False))


def _inert(cell: Any) -> Any:
    """Text that a spreadsheet would run as a formula, as text."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell

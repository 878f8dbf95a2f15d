"""How rows with a feature cache are shown: their columns in tables and .csv, and the block under them on the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any

from gen.eval.ranking import Group, Row, front, rival
from gen.eval.record import Record, number

__all__ = ["COLUMNS", "HEADS", "STYLE", "block", "cells", "values"]

HEADS = ("full steps", "c", "speed-up", "drift", "as fast uncached", "front")
MANY = 24  # sites: of more, only the blocks are named
COLUMNS = {
    "cache_fraction": ("fraction",),
    **{f"cache_c{end}": ("c", part) for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))},
    **{f"cache_speedup{end}": ("speedup", part) for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))},
    "cache_drift": ("drift", "rmse"),
    "cache_psnr": ("drift", "psnr"),
    "cache_equal_steps": ("equal_steps",),
    "cache_memory_mb": ("memory_mb",),
}


def cells(group: Group, row: Row | None) -> tuple[str, ...]:
    """The cells under HEADS, as text; empty but for the last if the row has no cache, empty for no row."""
    if row is None:
        return ("",) * len(HEADS)
    r, yes = row.record, "front" if row in front(group) else ""
    other = rival(group, row)
    steps = number(r, "cache", "equal_steps")
    fast = "" if steps is None else f"{steps:g} steps" + ("" if other is None else f" (#{other.rank})")
    return (
        _text(number(r, "cache", "fraction"), "{:.0%}"), _text(number(r, "cache", "c", "value"), "{:.2f}"),
        _ranged(r, "speedup", "{:.2f}", " – "), _text(number(r, "cache", "drift", "rmse"), "{:.4f}"), fast, yes,
    )  # fmt: skip


def values(record: Record) -> list[float | None]:
    """The numbers under COLUMNS, in full."""
    return [number(record, "cache", *keys) for keys in COLUMNS.values()]


def block(group: Group, row: Row) -> str:
    """The row of the page under a cached row: the map of what was computed, and what it saves and costs."""
    cache: Any = row.record.get("cache")
    if not cache:
        return ""
    facts = "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in _facts(group, row) if text)
    drawn = _map(cache["map"]) if cache.get("map") else ""
    return f'<tr class="cache"><td></td><td colspan="9" class="word"><div>{drawn}<dl>{facts}</dl></div></td></tr>'


def _facts(group: Group, row: Row) -> list[tuple[str, str]]:
    r = row.record
    full, evaluations = number(r, "cache", "full"), number(r, "cache", "evaluations")
    psnr, se = number(r, "cache", "drift", "psnr"), number(r, "cache", "drift", "se")
    rmse = _text(number(r, "cache", "drift", "rmse"), "<b>{:.4f}</b>")
    counted = "" if full is None or evaluations is None else f"<i>{full:g} of {evaluations:g}</i>"
    return [
        ("full steps", _text(number(r, "cache", "fraction"), "<b>{:.0%}</b>") + counted),
        ("speed-up", _ranged(r, "speedup", "{:.2f}", "–", "<b>{}×</b><i>{}</i>")),
        ("cost of a skipped step", _ranged(r, "c", "{:.3f}", "–", "<b>{}</b><i>{}</i>").replace("-", "−")),
        ("drift", rmse + _text(se, "<i>±{:.4f}</i>") + _text(psnr, "<i>{:.1f} dB</i>")),
        ("memory", _text(number(r, "cache", "memory_mb"), "{:.1f}<i>MiB</i>")),
        ("as fast without it", _uncached(group, row)),
    ]


def _uncached(group: Group, row: Row) -> str:
    steps, other = number(row.record, "cache", "equal_steps"), rival(group, row)
    if steps is None:
        return ""
    words = f"{steps:g} step{'' if steps == 1 else 's'}"
    if other is None:
        return words
    mine, theirs = (r["metrics"]["fid"] for r in (row.record, other.record))
    return f"{words}<i>row {other.rank}, FID {theirs['value'] - mine['value']:+.2f}</i>".replace("-", "−")


def _map(drawn: Record) -> str:
    """The picture with the names of its rows beside it."""
    sites: Sequence[str] = drawn["sites"]
    labels = "".join(f'<li style="flex-grow:{rows}">{escape(name)}</li>' for name, rows in _labels(sites))
    width = int.from_bytes(base64.b64decode(drawn["png"])[16:20], "big") // 2  # half of what its header says
    source = f"data:image/png;base64,{escape(drawn['png'])}"
    return f"""<figure class="map{" dense" if len(sites) > MANY else ""}"><ul>{labels}</ul><div>
<img alt="What was computed: sites down, steps across" width="{width}" src="{source}">
<p><span>step 1</span><span>{drawn["steps"]:g}</span></p></div></figure>"""


def _labels(sites: Sequence[str]) -> list[tuple[str, int]]:
    """Names and how many rows of the map they stand for: each site's, or where there are many, each block's.

    As many as there is room for: rows are then 6 pixels high, or 3 (see gen.eval.saving.picture), and a line is 12.
    """
    if len(sites) <= MANY:
        return [(site, 1) for site in sites]
    found, room = [], 12
    for name, rows in groupby(sites, lambda site: ".".join(site.split(".")[:2])):
        count = len(list(rows))
        found.append((name if room >= 12 else "", count))
        room = (0 if room >= 12 else room) + count * (6 if len(sites) <= 80 else 3)
    return found


def _text(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _ranged(record: Record, name: str, form: str, dash: str, whole: str = "{} ({})") -> str:
    value, low, high = (number(record, "cache", name, part) for part in ("value", "low", "high"))
    if value is None:
        return ""
    ends = "" if low is None or high is None else f"{form.format(low)}{dash}{form.format(high)}"
    return whole.format(form.format(value), ends)


STYLE = """
.entry .word small { max-width: 34em; white-space: normal; } .entry .tie { max-width: 12em; margin-left: auto;
  white-space: normal; }
.cache td { padding-top: 0; white-space: normal; }
.cache td > div { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; align-items: flex-start; }
.cache dl { display: grid; grid-template-columns: repeat(3, auto); gap: .45rem 2rem; margin: 0; flex: 1 1 320px;
  max-width: 620px; }
.cache dd { white-space: nowrap; } .cache dd b { font-weight: 600; }
.cache dd i { font-style: normal; color: var(--faint); font-size: 12px; padding-left: .4em; }
.map { display: flex; gap: .5rem; padding: 0; background: none; border: 0; border-radius: 0; }
.map ul { display: flex; flex-direction: column; margin: 0; padding: 0; list-style: none; }
.map > div { display: flex; flex-direction: column; }
.map img { display: block; image-rendering: pixelated; }
.map li, .map p { font: 10px/12px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  color: var(--faint); }
.map ul { align-self: flex-start; text-align: right; } .map li { height: 12px; }
.map.dense ul { align-self: stretch; padding-bottom: 15px; }
.map.dense li { flex-basis: 0; height: auto; min-height: 0; }
.map p { display: flex; justify-content: space-between; margin: .2rem 0 0; }
.on { color: var(--c0) !important; }
.plot .front { fill: none; stroke: var(--faint); stroke-width: 9; stroke-linecap: round; stroke-linejoin: round;
  opacity: .28; }
"""

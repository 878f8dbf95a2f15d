"""The leaderboard's page: HTML with its styles, plots and pictures inside. It loads nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from gen.eval import cached
from gen.eval.plot import Point, Series, marker, plot
from gen.eval.ranking import Group, Row, front
from gen.eval.record import Record, number, sampler_text

__all__ = ["page"]

DASH = '<span class="none">–</span>'


def page(groups: Sequence[Group], title: str) -> str:
    """The whole document. Every word that comes from a record is escaped; the policy forbids loading anything."""
    rows = sum(len(group.rows) for group in groups)
    tables = f", {len(groups)} tables that are not comparable with each other" if len(groups) > 1 else ""
    caches = any(group.cached for group in groups)
    return document(
        title,
        f"{STYLE}{cached.STYLE if caches else ''}",
        f"{rows} evaluation{'' if rows == 1 else 's'}{tables}",
        "".join(_group(group) for group in groups),
        f"""\
<p><b>FID</b> is the Fréchet distance to the real images between features of the extractor named above the table; lower
is better. <b>±</b> is one standard error from drawing the samples again (delta method), error bars are two.
Rows whose FIDs are less than two combined standard errors apart are marked as a <b>tie</b>: their order means nothing.
Neither covers training the model again, or other real images. <b>KID</b> is the full unbiased statistic and can be
negative.
<b>Accuracy</b>: samples that a classifier gives the label they were asked to have. <b>Nearest</b>: median distance to
the nearest training image in pixels; far below that of real images, a model copies. <b>NFE</b>: network evaluations
per image, counted, guidance included. Speed is the median of timed batches after warm-up, on the device named.</p>
{CACHED if caches else ""}{PICTURES}""",
    )


def document(title: str, style: str, what: str, body: str, foot: str) -> str:
    """A page under its title and a line that says what is on it and when it was made; nothing is loaded."""
    made = datetime.now(UTC).strftime("%d %B %Y")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p>{what}. Made by gen on {made}.</p>
</header>
{body}
<footer>
{foot}
</footer>
</body>
</html>
"""


def _group(group: Group) -> str:
    first = group.rows[0].record
    reference, extractor = first["reference"], first["extractor"]
    data = str((reference.get("data") or {}).get("name", "?"))
    shape = " × ".join(str(side) for side in reference.get("shape") or [])
    facts = {
        "samples": f"{first['n']:,}",
        "real images": f"{reference.get('n')}, {reference.get('split')} split",
        "size": shape,
        "features": f"{extractor.get('name')} {str(extractor.get('sha256'))[:8]}",
        "labels": first["labels"],
        "seed": _common(group, "seed"),
        "timed on": _common(group, "device"),
        "key": first["comparability"],
    }
    listed = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>"
        for k, v in facts.items()
        if v is not None and v != ""
    )
    floor = _floor_row(first) if number(first, "floor", "fid", "value") is not None else ""
    body = "".join(_row(row, group, _best(group)) for row in group.rows)
    heads = "".join(
        f'<th scope="col"{" class=word" if i in (1, 2) else ""}>{head}</th>' for i, head in enumerate(HEADS)
    )
    return f"""<section>
<h2>{escape(data[:1].upper() + data[1:])}, {escape(str(reference.get("split")))} split</h2>
<dl>{listed}</dl>
{_plots(group, data)}
<div class="scroll"><table>
<thead><tr>{heads}</tr></thead>
<tbody>{floor}</tbody>
{body}
</table></div>
</section>
"""


HEADS = ("", "Samples", "Method", "NFE", "FID", "KID", "Accuracy", "Nearest", "Images/s", "Params")


PICTURES = (
    "<p>The pictures of a table show the same labels in every row and, where the seed is the same, the same noise.</p>"
)
CACHED = """<p>A <b>cache</b> is compared with the same sampler without it, on the same noise. <b>Full steps</b>:
evaluations of the network of which all was computed. <b>Speed-up</b>: of the whole loop, the two timed in turns; the
interval holds the median with 95 % confidence. <b>Cost of a skipped step</b>: (r − F) / (1 − F) of a full one, where F
is the share of full steps and the loop takes r of the uncached time. <b>Drift</b>: root mean square difference of the
samples, whose values lie in −1 .. 1. <b>As fast without it</b>: the uncached steps that take as long, and how much
higher their FID is. The map has a column for each step and a row for each part of the network, filled where it was
computed. The broad band in the plot, and <b>front</b> in the table, is the Pareto front: no other row is both as fast
and better. Cached rows are not drawn against NFE, since not all of their evaluations are whole.</p>
"""


def _row(row: Row, group: Group, best: Mapping[str, float]) -> str:
    r = row.record
    tie = f'<small class="tie">tie with {row.tied()}</small>' if row.ties else ""
    speed, params = number(r, "speed", "images_per_second"), number(r, "params")
    fast = DASH if speed is None else _bold(f"{speed:,.0f}", speed == best.get("speed"))
    alt = f"Ten samples of {r['label']}, {sampler_text(r)}"
    cells = [
        f'<th scope="row" class="rank">{row.rank}</th>',
        f'<td class="word">{_strip(r.get("strip"), alt)}</td>',
        f'<td class="word"><b>{escape(r["label"])}</b><small>{escape(sampler_text(r))}</small></td>',
        f"<td>{r['nfe']:g}</td>",
        f"<td>{_value(r, 'metrics', 'fid', best)}{tie}</td>",
        *_rest(r, "metrics", best),
        f"<td>{fast}{_on_front(row, group)}</td>",
        f"<td>{DASH if params is None else f'{params:,.0f}'}</td>",
    ]
    told = f"<code>{escape(r['command'])}</code>" if r.get("command") else ""
    where = f"<span>{escape(r['device'])}</span>" if r.get("device") and _common(group, "device") is None else ""
    return f"""<tbody class="entry"><tr>{"".join(cells)}</tr>
{cached.block(group, row)}<tr class="how"><td></td><td colspan="9" class="word">{told}{where}</td></tr></tbody>
"""


def _on_front(row: Row, group: Group) -> str:
    return '<small class="on">front</small>' if group.cached and row in front(group) else ""


def _common(group: Group, key: str) -> Any:
    """What all rows have there; None if they differ, and so it must be said in each."""
    values = {row.record.get(key) for row in group.rows}
    return values.pop() if len(values) == 1 else None


def _floor_row(record: Record) -> str:
    floor = record["floor"]
    count = number(record, "floor", "n")
    other = "train" if record["reference"].get("split") == "test" else "test"
    what = f"{'' if count is None else f'{count:,.0f} '}{other} images: the floor"
    cells = [
        '<th scope="row" class="rank"></th>',
        f'<td class="word">{_strip(floor.get("strip"), "Ten real images")}</td>',
        f'<td class="word"><b>Real images</b><small>{escape(what)}</small></td>',
        f"<td>{DASH}</td><td>{_value(record, 'floor', 'fid', {})}</td>",
        *_rest(record, "floor", {}),
        f"<td>{DASH}</td><td>{DASH}</td>",
    ]
    return f'<tr class="real">{"".join(cells)}</tr>'


def _rest(record: Record, part: str, best: Mapping[str, float]) -> list[str]:
    accuracy, nearest = number(record, part, "accuracy", "value"), number(record, part, "nearest", "value")
    percent = DASH if accuracy is None else f"{100 * accuracy:.1f}<i>%</i>"
    return [
        f"<td>{_value(record, part, 'kid', best)}</td>",
        f"<td>{_bold(percent, accuracy is not None and accuracy == best.get('accuracy'))}</td>",
        f"<td>{DASH if nearest is None else f'{nearest:.2f}'}</td>",
    ]


def _value(record: Record, part: str, name: str, best: Mapping[str, float]) -> str:
    """A value and its standard error, to two digits of the latter."""
    value, se = number(record, part, name, "value"), number(record, part, name, "se")
    if value is None:
        return DASH
    places = 1 if abs(value) >= 100 else 2
    error = "" if se is None else f"<i>±{se:.{places}f}</i>"
    return f"{_bold(f'{value:.{places}f}'.replace('-', '−'), value == best.get(name))}{error}"


def _bold(text: str, yes: bool) -> str:
    return f"<b>{text}</b>" if yes else text


def _best(group: Group) -> dict[str, float]:
    """The best value of each column: printed bold when there are at least two to choose from."""
    records = [row.record for row in group.rows]
    columns: dict[str, list[float]] = {
        "fid": [-v for r in records if (v := number(r, "metrics", "fid", "value")) is not None],
        "kid": [-v for r in records if (v := number(r, "metrics", "kid", "value")) is not None],
        "accuracy": [v for r in records if (v := number(r, "metrics", "accuracy", "value")) is not None],
        "speed": [v for r in records if (v := number(r, "speed", "images_per_second")) is not None],
    }
    sign = {"fid": -1, "kid": -1}
    return {name: sign.get(name, 1) * max(values) for name, values in columns.items() if len(values) > 1}


def _strip(png: Any, alt: str) -> str:
    if not png:
        return DASH
    return f'<img class="strip" alt="{escape(alt)}" src="data:image/png;base64,{escape(png)}">'


def _plots(group: Group, data: str) -> str:
    """FID against NFE and against speed; rows of one run and one kind of sampler are joined.

    With cached rows, whose evaluations are not whole ones, these stand only against speed, where the front is shown.
    """
    members: dict[str, list[Record]] = {}
    for row in group.rows:
        members.setdefault(_family(row.record, group), []).append(row.record)
    families = sorted(members.items(), key=lambda item: -len(item[1]))
    floor = number(group.rows[0].record, "floor", "fid", "value")
    drawn = []
    for key, axis, words in (
        (("nfe",), "network evaluations per image (log)", "NFE"),
        (("speed", "images_per_second"), "images per second (log)", "images per second"),
    ):
        series = []
        for style, (name, records) in enumerate(families):
            shown = [r for r in records if (number(r, *key) or 0) > 0 and not (words == "NFE" and r.get("cache"))]
            series += [Series(name, [_point(r, *key) for r in shown], style)] if shown else []
        if series:
            title = f"FID against {words} on {data}"
            band = [_point(row.record, *key) for row in front(group)] if group.cached and words != "NFE" else []
            svg = plot(
                series, x=axis, y="FID, lower is better", title=title, floor=floor, powers=words == "NFE", front=band
            )
            drawn.append(f"<figure>{svg}</figure>")
    keys = "".join(f"<li>{_sample(style)}{escape(name)}</li>" for style, (name, _) in enumerate(families))
    if group.cached:
        keys += '<li><svg viewBox="0 0 14 14" class="plot" aria-hidden="true"><path class="front" d="M2 9L12 5"/></svg>'
        keys += "Pareto front</li>"
    return f'<ul class="legend">{keys}</ul><div class="plots">{"".join(drawn)}</div>'


def _point(record: Record, *key: str) -> Point:
    fid = record["metrics"]["fid"]
    place = number(record, *key) or 0.0
    return Point(place, fid["value"], fid["se"], f"{sampler_text(record)}, FID {fid['value']:.2f} ± {fid['se']:.2f}")


def _family(record: Record, group: Group) -> str:
    """The run's name, or the label all its rows have; with the sampler's where one run was sampled in several ways."""
    mine = [row.record for row in group.rows if row.record["run"] == record["run"]]
    ways, labels = {_way(r) for r in mine}, {r["label"] for r in mine}
    name = str(record["label"] if len(labels) == 1 else record["run"])
    return name if len(ways) == 1 else f"{name}, {_way(record)}"


def _way(record: Record) -> str:
    """The kind of sampler: without its number of steps, and of a cache the name alone, however often it skips."""
    sampler = record.get("sampler") or {}
    cache = sampler.get("cache")
    name = {"name": cache.get("name")} if isinstance(cache, Mapping) else cache
    return sampler_text({**record, "sampler": {**sampler, "steps": None, "cache": name}})


def _sample(style: int) -> str:
    return f'<svg viewBox="0 0 14 14" aria-hidden="true">{marker(style, 7, 7)}</svg>'


STYLE = """
:root { --paper: #fdfdfc; --card: #ffffff; --ink: #1c1e21; --soft: #62676e; --faint: #8d9299; --rule: #e3e4e2;
  --band: #f5f5f2; --grid: #ececea;
  --c0: #2463a6; --c1: #c05621; --c2: #237a57; --c3: #7a4fa3; --c4: #94720b; --c5: #a83a64; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --card: #1b1e22; --ink: #e7e8ea; --soft: #a3a9b1;
  --faint: #7b818a; --rule: #30343a; --band: #22262b; --grid: #2a2e33;
  --c0: #78aef0; --c1: #f0985f; --c2: #62c99f; --c3: #c4a0ea; --c4: #dcb950; --c5: #ef8fb2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 2rem 4rem; max-width: 1260px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 ui-sans-serif, system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { margin: 0; font-size: 2rem; line-height: 1.2; font-weight: 650; letter-spacing: -0.02em; }
header p { margin: .35rem 0 0; color: var(--soft); }
section { margin-top: 2.75rem; }
h2 { break-after: avoid; margin: 0 0 .6rem; font-size: 1.25rem; font-weight: 650; letter-spacing: -0.01em; }
dl { display: flex; flex-wrap: wrap; gap: .3rem 2rem; margin: 0 0 1.5rem; font-size: 13px; }
dt { color: var(--faint); } dd { margin: 0; font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; margin: 0 0 .75rem; padding: 0; list-style: none;
  font-size: 13px; color: var(--soft); }
.legend li { display: flex; align-items: center; gap: .45rem; }
.legend svg { width: 14px; height: 14px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 1.25rem; }
figure { margin: 0; padding: 1.1rem 1.2rem .8rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; break-inside: avoid; }
.plot { display: block; width: 100%; height: auto; font-size: 12.5px; }
.plot text { fill: var(--soft); font-variant-numeric: tabular-nums; }
.plot .title { fill: var(--ink); font-size: 13px; }
.plot .grid { stroke: var(--grid); } .plot .axis { stroke: var(--faint); }
.plot .floor { stroke: var(--soft); stroke-dasharray: 5 4; }
.line { fill: none; stroke-width: 1.75; stroke-linejoin: round; opacity: .75; }
.bar { fill: none; stroke-width: 1.25; opacity: .8; }
.mark { stroke: var(--card); stroke-width: 1.25; }
.s0 { stroke: var(--c0); } .s1 { stroke: var(--c1); } .s2 { stroke: var(--c2); }
.s3 { stroke: var(--c3); } .s4 { stroke: var(--c4); } .s5 { stroke: var(--c5); }
.mark.s0 { fill: var(--c0); } .mark.s1 { fill: var(--c1); } .mark.s2 { fill: var(--c2); }
.mark.s3 { fill: var(--c3); } .mark.s4 { fill: var(--c4); } .mark.s5 { fill: var(--c5); }
.mark.s0, .mark.s1, .mark.s2, .mark.s3, .mark.s4, .mark.s5 { stroke: var(--card); }
.scroll { margin-top: 1.5rem; overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .6rem .55rem; text-align: right; vertical-align: middle; font-weight: 400; }
thead th { padding-top: 0; color: var(--soft); font-size: 13px; border-bottom: 1px solid var(--faint); }
.word { text-align: left; }
.rank { color: var(--faint); padding-left: .4rem; width: 2.2rem; }
td b { font-weight: 650; }
td small { display: block; color: var(--soft); font-size: 12.5px; line-height: 1.4; }
td i { font-style: normal; color: var(--faint); font-size: 12.5px; padding-left: .25em; }
.none { color: var(--faint); }
.real td, .real th { background: var(--band); }
.entry { border-bottom: 1px solid var(--rule); break-inside: avoid; }
.entry .how td { padding-top: 0; padding-bottom: .6rem; font-size: 12px; color: var(--faint); white-space: normal; }
.how code { font: 12px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; color: var(--soft);
  user-select: all; overflow-wrap: anywhere; margin-right: 1rem; }
.strip { display: block; height: 32px; width: auto; max-width: 380px; image-rendering: pixelated; border-radius: 3px; }
footer { margin-top: 2.75rem; max-width: 76ch; color: var(--soft); font-size: 13px; }
footer b { color: var(--ink); font-weight: 600; }
@page { size: A4 landscape; margin: 12mm; }
@media print { :root { --paper: #fff; --card: #fff; --ink: #000; --soft: #444; --faint: #777; --rule: #ccc;
  --band: #f3f3f3; --grid: #e6e6e6; --c0: #2463a6; --c1: #c05621; --c2: #237a57; --c3: #7a4fa3; --c4: #94720b;
  --c5: #a83a64; }
  body { padding: 0; font-size: 11px; } .scroll { overflow: visible; } .strip { height: 20px; }
  th, td { padding: .35rem .4rem; } * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

"""Benchmark results as a table of text and as a page: who is how many times as fast, how near the machine's peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from gen.eval.page import DASH, STYLE, document
from gen.eval.plot import STYLES, Axis, number

__all__ = ["page", "table"]

Record = Mapping[str, Any]

WIDTH, LEFT, RIGHT, ROW = 900, 330, 800, 17  # of the drawing: its width, the place of the bars, the height of a line
HEADS = ("", "Time", "Times as fast", "Roofline", "Rates", "Error")
MORE = """.plots { grid-template-columns: 1fr; } .plot .one { stroke: var(--ink); } .plot .value { fill: var(--ink); }
.rect { opacity: .55; } .rect.s0 { fill: var(--c0); } .rect.s1 { fill: var(--c1); } .rect.s2 { fill: var(--c2); }
.rect.s3 { fill: var(--c3); } .rect.s4 { fill: var(--c4); } .rect.s5 { fill: var(--c5); }
.plot .whisker { stroke: var(--ink); fill: none; } .red { color: var(--c5); }
td.wide, .real td { white-space: normal; text-align: left; } .unavailable td { color: var(--faint); }
"""
FOOT = """\
<p><b>Time</b> is the median of calls that took turns with all the others of their case, there and back, in one process,
on input sets that change from call to call. <b>Times as fast</b>: the time of a peer over that of ours in the same
round; the median, and in brackets the interval that holds it with 95 % confidence; above 1 ours is faster.
<b>Roofline</b>: the least time that the products or the bytes of a case can take, by the peaks measured in the same
run, over the time it took. <b>Error</b>: root mean square, relative to the exact result in float64, and what was
allowed: a multiple of the error of the case's baseline. A case in which a result is wrong reports no time at all.</p>
<p>Times of launches and of Python are part of the time, but where a case says <b>graph</b>: there the kernels of many
calls were launched as one CUDA graph.</p>"""


@dataclass(frozen=True)
class Bar:
    """A ratio with its interval, one line of the drawing. style: its peer's place among the colours."""

    label: str
    value: float
    low: float
    high: float
    style: int


def table(record: Record) -> str:
    """A case: ours, each followed by its peers with how many times as fast ours is; then the unavailable ones."""
    lines = [f"{record['case']}   ({', '.join(_facts(record))})" if _facts(record) else str(record["case"])]
    if not record["gate"]["ok"]:
        return "\n".join([*lines, f"  WRONG, and so not timed: {record['gate']['error']}"])
    calls = {call["name"]: call for call in record["calls"]}
    width = max(map(len, calls)) + 2
    for ours in (c for c in record["calls"] if c["ours"] and "ms" in c):
        lines.append(f"  {ours['name']:<{width}} {_ms(ours)}{'':26}{_roofline(ours)}   {_rates(ours)}".rstrip())
        for ratio in (r for r in record["ratios"] if r["ours"] == ours["name"]):
            peer = calls[ratio["peer"]]
            lines.append(
                f"    {peer['name']:<{width - 2}} {_ms(peer)}   {_interval(ratio):<23}{_roofline(peer)}".rstrip()
            )
    lines += [
        f"  {call['name']:<{width}} unavailable: {call['unavailable']}"
        for call in record["calls"]
        if "unavailable" in call
    ]
    return "\n".join(lines)


def page(files: Sequence[Record], title: str = "Benchmarks") -> str:
    """The whole document, of the files that `gen bench` writes. Every word from them is escaped; it loads nothing."""
    cases = sum(len(file["cases"]) for file in files)
    wrong = sum(not record["gate"]["ok"] for file in files for record in file["cases"])
    what = f"{cases} case{'' if cases == 1 else 's'}" + (f", {wrong} of them wrong" if wrong else "")
    return document(title, STYLE + MORE, what, "".join(map(_section, files)), FOOT)


def _section(file: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in file["versions"].items() if version)
    machine, peak = file["machine"], file["peak"]
    facts = {
        "measured on": machine["name"],
        "cores": machine["cores"],
        "dtype": file["dtype"],
        "seed": file["seed"],
        "peak": f"{peak['flops'] / 1e12:.3g} TFLOP/s, {peak['bytes'] / 1e9:.3g} GB/s",
        "versions": versions,
        "date": file["date"],
    }
    listed = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    heads = "".join(f'<th scope="col"{" class=word" if i in (0, 4) else ""}>{h}</th>' for i, h in enumerate(HEADS))
    body = "".join(map(_rows, file["cases"]))
    command = f'<p class="how"><code>{escape(file["command"])}</code></p>'
    return f"""<section>
<h2>{escape(file["part"][:1].upper() + file["part"][1:])}</h2>
<dl>{listed}</dl>
{_plot(file)}
<div class="scroll"><table>
<thead><tr>{heads}</tr></thead>
{body}
</table></div>
{command}
</section>
"""


def _rows(record: Record) -> str:
    """A case of the table."""
    facts, gate = ", ".join(_facts(record)), record["gate"]
    rows = [f'<tr class="real"><td colspan="6"><b>{escape(record["case"])}</b> <i>{escape(facts)}</i></td></tr>']
    if not gate["ok"]:
        rows.append(f'<tr><td class="wide red" colspan="6">Wrong, and so not timed: {escape(gate["error"])}</td></tr>')
    for call in record["calls"]:
        bold = "b" if call["ours"] else "span"
        name = f'<td class="word"><{bold}>{escape(call["name"])}</{bold}></td>'
        if "unavailable" in call:
            rows.append(
                f'<tr class="unavailable">{name}<td class="wide" colspan="5">'
                f"unavailable: {escape(call['unavailable'])}</td></tr>"
            )
        elif "ms" in call:
            ratios = [(r["ours"], _interval(r)) for r in record["ratios"] if r["peer"] == call["name"]]
            several = len(ratios) > 1
            told = "".join((f"<small>{escape(ours)}</small>" if several else "") + text for ours, text in ratios)
            error = gate["errors"][call["name"]]
            cells = (_ms(call), told or DASH, _roofline(call).strip() or DASH)
            text = "".join(f"<td>{cell}</td>" for cell in cells)
            why = f"{error['error']:.2g}<i>of {error['bound']:.2g}</i>"
            rows.append(f'<tr>{name}{text}<td class="word">{escape(_rates(call))}</td><td>{why}</td></tr>')
    return f'<tbody class="entry">{"".join(rows)}</tbody>\n'


def _plot(file: Record) -> str:
    """Bars of all ratios from 1, the peers of a case below its name."""
    groups: list[tuple[str, list[Bar]]] = []
    peers = list(dict.fromkeys(r["peer"] for record in file["cases"] for r in record["ratios"]))
    for record in file["cases"]:
        several = len({r["ours"] for r in record["ratios"]}) > 1
        for ours in dict.fromkeys(r["ours"] for r in record["ratios"]):
            bars = [
                Bar(r["peer"], r["value"], r["low"], r["high"], peers.index(r["peer"]) % STYLES)
                for r in record["ratios"]
                if r["ours"] == ours
            ]
            groups.append((f"{record['case']}: {ours}" if several else record["case"], bars))
    if not groups:
        return ""
    title = f"How many times as fast as each peer, {file['part']}"
    return f'<div class="plots"><figure>{_bars(groups, title)}</figure></div>'


def _bars(groups: Sequence[tuple[str, Sequence[Bar]]], title: str) -> str:
    """An SVG on a log scale; a bar starts at 1, where both are as fast."""
    ends = [end for _, bars in groups for bar in bars for end in (bar.low, bar.high)]
    axis = Axis.around([*ends, 1.0], LEFT, RIGHT, True)
    bottom = ROW * (1 + sum(len(bars) + 1.4 for _, bars in groups))
    parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {bottom + 30:.0f}" role="img" aria-label="{escape(title)}">']
    parts.append(f"<title>{escape(title)}</title>")
    for tick in axis.ticks(9):
        line = f'<line class="grid" x1="{axis(tick):.1f}" y1="{ROW}" x2="{axis(tick):.1f}" y2="{bottom:.1f}"/>'
        text = f'<text x="{axis(tick):.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{number(tick)}</text>'
        parts.append(line + text)
    y = 1.0 * ROW
    for name, bars in groups:
        y += 1.4 * ROW
        parts.append(f'<text class="title" x="0" y="{y - 0.35 * ROW:.1f}">{escape(name)}</text>')
        for bar in bars:
            parts.append(_bar(bar, axis, y))
            y += ROW
    parts.append(f'<line class="one" x1="{axis(1):.1f}" y1="{ROW}" x2="{axis(1):.1f}" y2="{bottom:.1f}"/>')
    parts.append(f'<text class="title" x="0" y="{bottom + 16:.1f}">times as fast as the peer (log)</text></svg>')
    return "".join(parts)


def _bar(bar: Bar, axis: Axis, y: float) -> str:
    start, end = sorted((axis(1), axis(bar.value)))
    low, high, middle = axis(bar.low), axis(bar.high), y + ROW / 2 - 1
    return (
        f"<g><title>{escape(bar.label)}: {_interval(vars(bar))}</title>"
        f'<text x="{LEFT - 10}" y="{y + ROW - 5:.1f}" text-anchor="end">{escape(bar.label)}</text>'
        f'<rect class="rect s{bar.style}" x="{start:.1f}" y="{y:.1f}" width="{end - start:.1f}" height="{ROW - 3}"/>'
        f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 3:.1f}v6M{high:.1f} '
        f'{middle - 3:.1f}v6"/>'
        f'<text class="value" x="{WIDTH}" y="{y + ROW - 5:.1f}" text-anchor="end">{bar.value:.2f}</text></g>'
    )


def _facts(record: Record) -> list[str]:
    """What is known of a case before it is timed, and how it was."""
    flops, moved = record["flops"], record["bytes"]
    facts = [f"{flops / 1e9:.3g} GFLOP"] if flops else []
    facts += [f"{moved / 1e6:.3g} MB"] if moved else []
    facts += [f"{record['rounds']} rounds"] if "rounds" in record else []
    return facts + ([str(record["launch"])] if record.get("launch", "python") != "python" else [])


def _ms(call: Mapping[str, Any]) -> str:
    return f"{call['ms']:10.4f} ms" if call["ms"] < 1 else f"{call['ms']:10.2f} ms"


def _roofline(call: Mapping[str, Any]) -> str:
    return "" if call["roofline"] is None else f"{call['roofline']:5.1f} %"


def _interval(ratio: Mapping[str, Any]) -> str:
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _rates(call: Mapping[str, Any]) -> str:
    """Every rate, to three digits: 61.2 images/s, 34.1 TFLOP/s."""
    return ", ".join(
        f"{value:,.3g} {name}" if value < 1000 else f"{value:,.0f} {name}" for name, value in call["rates"].items()
    )

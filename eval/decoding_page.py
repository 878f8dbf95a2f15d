"""The page of measured decoders: success against tokens per forward and against speed, a table for each task."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape

from gen.eval.decoding import Curve, Record, curves, groups, pareto, percent
from gen.eval.page import STYLE, document
from gen.eval.plot import Point, Series, marker, plot

__all__ = ["page"]

HEADS = ("", "Decoding", "Success", "Tokens per forward", "NFE", "Tokens", "Computed", "Tokens/s", "ms")
BAND = '<li><svg viewBox="0 0 14 14" class="plot" aria-hidden="true"><path class="front" d="M2 9L12 5"/></svg>'
MORE = """.on { color: var(--c0) !important; } .real td:last-child { text-align: left; color: var(--soft); }
.plot .front { fill: none; stroke: var(--faint); stroke-width: 9; stroke-linecap: round; stroke-linejoin: round;
  opacity: .3; }
"""


FOOT = """\
<p><b>Success</b>: replies that solve their task. <b>±</b> is one standard error from drawing the prompts again, error
bars are two. <b>Tokens per forward</b>: all tokens of the replies, prompts not counted, over all evaluations of the
network. <b>NFE</b>, <b>Tokens</b>, <b>Computed</b>: evaluations, tokens, and places that the network computed, for each
reply; the last with the prompt, and fewer with a cache. <b>Tokens/s</b> and <b>ms</b> per reply: of the whole loop, on
the device named, in batches of the size named. <b>AUP</b>: accuracy under parallelism of a curve (arXiv 2601.07568).
<b>front</b>: no other row has as many tokens per forward and more success.</p>
<p>The broad band is the <b>best possible</b> with an exact model whose tokens are drawn at temperature 1, in whatever
order and number, adaptive ones included: tokens committed together are drawn without knowing one another. It bounds
none that takes the likeliest token at temperature 0.</p>"""


def page(records: Sequence[Record], title: str = "Decoding") -> str:
    """The whole document. Every word that comes from a record is escaped; the policy forbids loading anything."""
    what = f"{len(records)} measurement{'' if len(records) == 1 else 's'}"
    sections = "".join(_section(group) for group in groups(records).values())
    return document(title, f"{STYLE}{MORE}", what, sections, FOOT)


def _section(group: Sequence[Record]) -> str:
    first, found = group[0], curves(group)
    protocol = first["protocol"]
    facts = {
        "prompts": f"{protocol['n']}, {protocol['split']} split",
        "tokens": f"at most {protocol['length']}",
        "batch": _common(group, "batch"),
        "seed": _common(group, "seed"),
        "timed on": _common(group, "device"),
        "key": first["comparability"],
    }
    listed = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v)
    best, several = pareto(group), len({r["run"] for r in group}) > 1
    heads = "".join(f'<th scope="col"{" class=word" if i == 1 else ""}>{head}</th>' for i, head in enumerate(HEADS))
    body = "".join(_curve(i, curve, best, several) for i, curve in enumerate(found))
    task = str(first["task"])
    return f"""<section>
<h2>{escape(task[:1].upper() + task[1:])}</h2>
<dl>{listed}</dl>
{_plots(found, task, several)}
<div class="scroll"><table>
<thead><tr>{heads}</tr></thead>
{body}
</table></div>
</section>
"""


def _common(group: Sequence[Record], key: str) -> str:
    """What all records have there; nothing if they differ."""
    values = {record.get(key) for record in group}
    return "" if len(values) > 1 or None in values else str(values.pop())


def _curve(style: int, curve: Curve, best: Sequence[Record], several: bool) -> str:
    """The rows of a curve under its name and AUP."""
    name = f"{curve.run}, {curve.name}" if several else curve.name
    rows = [f'<tr class="real"><td>{_sample(style)}</td><td class="word"><b>{escape(name)}</b></td>'
            f'<td colspan="7">AUP {curve.aup:.1f}</td></tr>']  # fmt: skip
    for r in curve.records:
        success, rate = r["success"], r["tokens_per_forward"]
        mark = '<small class="on">front</small>' if any(r is other for other in best) else ""
        cells = (
            f"{100 * success['value']:.1f}<i>% ±{100 * success['se']:.1f}</i>",
            f"{rate['value']:.2f}<i>±{rate['se']:.2f}</i>{mark}",
            f"{r['nfe']:.2f}",
            f"{r['tokens']:.1f}",
            f"{r['computed']:,.0f}",
            f"{r['tokens_per_second']:,.0f}",
            f"{r['ms']:.2f}",
        )
        text = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><td></td><td class="word">{escape(r["label"])}</td>{text}</tr>')
    commands = dict.fromkeys(str(r["command"]) for r in curve.records if r.get("command"))
    rows += [f'<tr class="how"><td></td><td colspan="8" class="word"><code>{escape(c)}</code></td></tr>'
             for c in commands]  # fmt: skip
    return f'<tbody class="entry">{"".join(rows)}</tbody>\n'


def _plots(found: Sequence[Curve], task: str, several: bool) -> str:
    """Success against tokens per forward, where the bound is known, and against speed."""
    names = [f"{curve.run}, {curve.name}" if several else curve.name for curve in found]
    rates = [percent(r)[0] for curve in found for r in curve.records]
    bound = next((r["bound"] for curve in found for r in curve.records if r.get("bound")), None)
    band = [] if bound is None else _band(bound, min(rates))
    drawn = []
    for axis, words in (("tokens per forward (log)", "tokens per forward"), ("tokens per second (log)", "speed")):
        series = [
            Series(name, [_point(r, words) for r in curve.records], style)
            for style, (name, curve) in enumerate(zip(names, found, strict=True))
        ]
        title = f"Success against {words}, {task}"
        shown = band if words == "tokens per forward" else []
        svg = plot(series, x=axis, y="success, %", title=title, front=shown, linear=True)
        drawn.append(f"<figure>{svg}</figure>")
    keys = "".join(f"<li>{_sample(style)}{escape(name)}</li>" for style, name in enumerate(names))
    keys += f"{BAND}best possible with an exact model at temperature 1</li>" if band else ""
    return f'<ul class="legend">{keys}</ul><div class="plots">{"".join(drawn)}</div>'


def _point(record: Record, words: str) -> Point:
    rate, success = percent(record)
    x = rate if words == "tokens per forward" else float(record["tokens_per_second"])
    se = 100 * float(record["success"]["se"])
    return Point(x, success, se, f"{record['label']}, {success:.1f} % ± {se:.1f}, {rate:.2f} tokens per forward")


def _band(bound: Sequence[Sequence[float]], least: float, between: int = 8) -> list[Point]:
    """The front from its corners: level to the left of the first, and straight in forwards between them."""
    points = [Point(min(least, bound[0][0]), 100 * bound[0][1])]
    for (rate, success), (faster, less) in itertools.pairwise(bound):
        for k in range(between):
            share = k / between
            forwards = (1 - share) / rate + share / faster
            points.append(Point(1 / forwards, 100 * ((1 - share) * success + share * less)))
    return [*points, Point(bound[-1][0], 100 * bound[-1][1])]


def _sample(style: int) -> str:
    return f'<svg viewBox="0 0 14 14" width="14" height="14" aria-hidden="true">{marker(style, 7, 7)}</svg>'

"""Benchmark results as a table of text and as a page: who is how many times as fast, how near the machine's peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gen.config.spec import Json
from gen.eval.pages import render
from gen.eval.plot import Axis

__all__ = ["bench_page", "bench_table"]

CaseRecord = Json  # as gen.eval.bench.Bench.measure returns it

LEFT, RIGHT, ROW = 330, 800, 17  # of the drawing of bars: its ends, and the height of a line


def bench_table(case: CaseRecord) -> str:
    """Return a case as text: ours, each followed by its peers and times as fast as each ours is; then unavailable ones.

    Args:
        case: record of a case.
    """
    facts = case_facts(case)
    lines = [f"{case['case']}   ({facts})" if facts else str(case["case"])]
    if not case["gate"]["ok"]:
        return "\n".join([*lines, f"  WRONG, and so not timed: {case['gate']['error']}"])
    calls = {call["name"]: call for call in case["calls"]}
    width = max(map(len, calls)) + 2
    for ours in (c for c in case["calls"] if c["ours"] and "ms" in c):
        text = f"  {ours['name']:<{width}} {ms_text(ours)}{'':26}{roofline_text(ours)}   {rates_text(ours)}"
        lines.append(text.rstrip())
        for ratio in (r for r in case["ratios"] if r["ours"] == ours["name"]):
            peer = calls[ratio["peer"]]
            text = f"    {peer['name']:<{width - 2}} {ms_text(peer)}   {ratio_text(ratio):<23}{roofline_text(peer)}"
            lines.append(text.rstrip())
    out = [call for call in case["calls"] if "unavailable" in call]
    lines += [f"  {call['name']:<{width}} unavailable: {call['unavailable']}" for call in out]
    return "\n".join(lines)


def bench_page(files: Sequence[Json], title: str = "Benchmarks") -> str:
    """Return the whole document; every word from the files is escaped, and nothing is loaded.

    Args:
        files: as `gen bench` writes them.
        title: of the page.
    """
    functions = (bar_drawing, case_facts, ms_text, rates_text, ratio_text, roofline_text, versions_text)
    cases = [case for file in files for case in file["cases"]]
    context = {f.__name__: f for f in functions}
    return render("bench.html", {"title": title, "files": files, "cases": cases, **context})


def bar_drawing(file: Json) -> Json:
    """Return the bars of all ratios, the peers of a case below its name, and the scale."""
    groups, y = [], 1.0 * ROW
    for case in file["cases"]:
        several = len({r["ours"] for r in case["ratios"]}) > 1
        for ours in dict.fromkeys(r["ours"] for r in case["ratios"]):
            rows = [r for r in case["ratios"] if r["ours"] == ours]
            y += 1.4 * ROW
            groups.append((f"{case['case']}: {ours}" if several else case["case"], y, rows))
            y += ROW * len(rows)
    ratios = [r for _, _, rows in groups for r in rows]
    return {
        "title": f"How many times as fast as each peer, {file['part']}",
        "axis": Axis.around([1.0, *(r[end] for r in ratios for end in ("low", "high"))], LEFT, RIGHT, True),
        "bottom": round(y),
        "groups": groups,
        "peers": list(dict.fromkeys(r["peer"] for r in ratios)),
    }


def case_facts(case: CaseRecord) -> str:
    """Return what is known of a case before it is timed, and how it was."""
    facts = [f"{case['flops'] / 1e9:.3g} GFLOP"] if case["flops"] else []
    facts += [f"{case['bytes'] / 1e6:.3g} MB"] if case["bytes"] else []
    facts += [f"{case['rounds']} rounds"] if "rounds" in case else []
    return ", ".join(facts + ([case["launch"]] if case.get("launch", "python") != "python" else []))


def versions_text(versions: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def ms_text(call: Json) -> str:
    return f"{call['ms']:10.4f} ms" if call["ms"] < 1 else f"{call['ms']:10.2f} ms"


def roofline_text(call: Json) -> str:
    return "" if call["roofline"] is None else f"{call['roofline']:5.1f} %"


def ratio_text(ratio: Json) -> str:
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def rates_text(call: Json) -> str:
    """Return every rate to three digits: 61.2 images/s, 34.1 TFLOP/s."""
    rates = call["rates"].items()
    return ", ".join(f"{v:,.3g} {name}" if v < 1000 else f"{v:,.0f} {name}" for name, v in rates)

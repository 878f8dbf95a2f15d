"""Tables of `gen bench` over the results of one machine and of two."""

import json

import pytest

from scripts import _table_parts
from scripts._bench_tables import engines


def result(value, family):
    ratio = {"ours": "packed", "peer": "diffusers eager", "value": value, "low": value - 0.1, "high": value + 0.1}
    machine = {"name": "AMD EPYC, 2 threads"} | ({"cpu": {"family": family, "model": "2"}} if family else {})
    versions = {"torch": "2.13.0", "diffusers": "0.42.1"}
    cases = [{"case": "DiT-S/2, batch 1", "ratios": [ratio]}]
    return {"date": "2026-11-28T11", "machine": machine, "versions": versions, "cases": cases}


@pytest.mark.parametrize(
    ("machines", "cell", "end"),
    [
        ({"": (2.05, None)}, "2.05 [1.95, 2.15]", "2026-11-28, AMD EPYC, 2 threads, torch"),
        ({"": (2.05, None), "turin/": (1.36, "26")}, "1.36 to 2.05", "AMD EPYC, 2 threads (family 26, model 2), torch"),
        ({"": (1.36, None), "turin/": (1.36, "26")}, "1.36", "ranges are over the machines"),
    ],
)
def test_a_table_has_the_range_over_machines(tmp_path, monkeypatch, machines, cell, end):
    for name, about in machines.items():
        for part in ("forward", "sample"):
            file = tmp_path / "bench" / name / "cpu-float32" / f"{part}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(result(*about) if part == "forward" else {**result(*about), "cases": []}))
    monkeypatch.setattr(_table_parts, "RESULTS", tmp_path)
    lines = list(engines())
    assert lines[2] == f"| DiT-S/2, batch 1 | diffusers eager | {cell} |  |"
    assert end in lines[-1]

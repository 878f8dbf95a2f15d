"""Records of strangers: nothing in them runs in a spreadsheet or a page, and one that is damaged stops nobody."""

import csv
import io
import json

import pytest

from gen.cli import main
from gen.config.errors import UserError
from gen.eval.leaderboard import leaderboard
from gen.eval.metrics import Column
from gen.eval.record import Estimate, Measurement, to_json, write_record
from gen.eval.sources import collect
from gen.eval.tables import inert
from tests.eval.test_leaderboard import made

FORMULAS = [
    "=1",
    " =1",
    "\t=1",
    "\xa0=1",
    "\u200b=1",
    "\ufeff=1",
    "\x00=1",
    "\n=1",
    "＝1",
    "+1",
    "-1",
    "@SUM(1)",
    "  @x",
    "\ta",
]


@pytest.mark.parametrize("text", FORMULAS, ids=ascii)
def test_no_cell_is_a_formula(text):
    assert inert(text) == f"'{text}"


@pytest.mark.parametrize("cell", ["heun, 4 steps", "a=1", "é=1", "", "'=1", -1.5, None, 3], ids=ascii)
def test_other_cells_stay(cell):
    assert inert(cell) == cell


def test_heads_are_inert_too(tmp_path):
    column = Column("=cmd()", "<script>alert(1)</script>", note="<u>")
    record = made("=1", metrics=[Measurement(column, {"name": " =2"}, Estimate(1.0, 0.1, 10))])
    page = leaderboard([record], tmp_path)
    rows = list(csv.reader(io.StringIO(page.with_suffix(".csv").read_text())))
    assert not [cell for row in rows for cell in row if cell.lstrip().startswith(("=", "+", "@"))]
    assert "'=cmd()" in rows[0] and "'=1" in rows[1]
    assert page.read_text().count("<script") == 1 and "<u>" not in page.read_text()


def test_a_leaderboard_goes_on_without_what_holds_no_record(tmp_path, capsys):
    runs = tmp_path / "runs"
    for name in ("good", "mixed"):
        write_record(made(name, fid=2.0), runs / name / "eval")
    (runs / "none").mkdir()
    (runs / "notes.txt").write_text("notes")
    for name, text in (("nan", '{"schema": NaN}'), ("deep", "[" * 10**5), ("long", "9" * 5000), ("cut", '{"a":')):
        (runs / "mixed" / "eval" / f"{name}.json").write_text(text)
    edited = to_json(made("edited", fid=1.06))
    edited["metrics"][0]["estimate"]["value"] = 0.01
    (runs / "mixed" / "eval" / "edited.json").write_text(json.dumps(edited))
    names = [str(path) for path in sorted(runs.iterdir())]
    with pytest.warns(UserWarning, match="passed over") as warned:
        assert main(["leaderboard", *names, "--out", str(tmp_path / "lb.html")]) == 0
    passed = sorted(str(w.message) for w in warned)
    for name in ("nan.json", "deep.json", "long.json", "cut.json", "edited.json", "notes.txt", "none holds no"):
        assert sum(name in line for line in passed) == 1, name
    assert len(passed) == 7 and not any("\n" in line for line in passed)
    out = capsys.readouterr().out
    assert "good" in out and "mixed" in out and "edited" not in out
    with pytest.warns(UserWarning), pytest.raises(UserError, match="no evaluation records"):
        collect([runs / "none", runs / "notes.txt"])
    for alone in (runs / "none", runs / "mixed" / "eval" / "edited.json"):
        with pytest.raises(UserError):
            collect([alone])

"""scripts/study.py: who waits for whom, what its table says, and a study of two steps from end to end."""

import importlib.util
from pathlib import Path

import pytest

from gen.config.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "study.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SMALL = {"depth": 1, "width": 16, "heads": 2, "patch": 4}
TINY = {
    "recipe": "digits",
    "set": {"steps": 2, "batch_size": 8, "model": SMALL, "sample_every": 0, "validate_every": 2, "save_every": 0},
    "entries": {
        "first": {"evaluate": [1, 2]},
        "second": {"method": {"name": "consistency", "grid_steps": [2, 2]}, "evaluate": [1], "steps": 1},
        "other": {"steps": 3},
        "third": {"method": "tcm", "teacher": "second"},
    },
}


def test_students_wait_for_their_teachers(study):
    assert study.turns(TINY, ["third"]) == [["first"], ["second"], ["third"]]
    assert study.turns(TINY, list(TINY["entries"])) == [["first", "other"], ["second"], ["third"]]
    assert study.turns(TINY, ["other"]) == [["other"]]
    late = {"entries": {"a": {}, "b": {"method": "ect", "teacher": "c"}, "c": {}}}
    with pytest.raises(UserError, match="'b' learns from 'c', which is no entry before it"):
        study.turns(late, ["b"])


@pytest.mark.slow
def test_a_student_from_end_to_end(study, tmp_path):
    rows = [row for name in ("first", "second") for row in study.one((TINY, name, 1, tmp_path, 20))]
    assert [(row["name"], row["nfe"], row["steps"]) for row in rows] == [
        ("first", 1, 2),
        ("first", 2, 2),
        ("second", 1, 1),
    ]
    assert all(row["fid"] > 0 and row["ms_per_step"] > 0 and 0 <= row["coverage"] <= 1 for row in rows)
    assert rows[0]["curve"] == [[2, rows[0]["val_loss"]]] or rows[0]["curve"] == [(2, rows[0]["val_loss"])]
    assert [row["fid"] for row in study.one((TINY, "first", 1, tmp_path, 20))] == [row["fid"] for row in rows[:2]]
    means = list(study.summary([*rows, {**rows[0], "seed": 2, "fid": rows[0]["fid"] + 2}]))
    assert means[0]["fid"]["value"] == pytest.approx(rows[0]["fid"] + 1) and means[0]["fid"]["se"] == pytest.approx(1)
    lines = list(study.table(means, means[1]))
    assert len(lines) == 2 + 3 and len({line.count("|") for line in lines}) == 1 and "| 1.00 |" in lines[3]


def test_a_report_is_of_what_is_finished(study, tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.toml").write_text(
        'recipe = "digits"\nseeds = 2\n[entries.first]\nevaluate = [1]\n[entries.other]\n'
    )
    row = {"name": "first", "nfe": 1, "seed": 1, "steps": 2, "params": 3, "ms_per_step": 1.0, "curve": []}
    row |= dict.fromkeys(("fid", "pixel_fid", "accuracy", "recall", "coverage"), 0.5)
    (tmp_path / "first-1").mkdir()
    study.write_json(tmp_path / "first-1" / "study.json", [row])
    monkeypatch.setattr(study, "RESULTS", tmp_path)
    monkeypatch.setattr(study, "leaderboard", lambda *args, **kwargs: None)
    study.main([str(tmp_path / "tiny.toml"), "--report", "--out", str(tmp_path)])
    assert "| first | 1 | 1 | 2 | 0.500 | 1.00 |" in capsys.readouterr().out
    assert study.read_json(tmp_path / "tiny.json")["rows"][0]["seeds"] == 1

"""A few faults of every kind over stored files: none is silent, and none a crash."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/corruption_test.py"


@pytest.mark.slow
def test_no_fault_is_silent(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("corruption_test", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "corruption_test", script)
    spec.loader.exec_module(script)
    monkeypatch.setattr("sys.argv", ["corruption_test.py", "--faults", "105", "--seed", "7"])
    code = script.main()
    said = capsys.readouterr().out
    assert code == 0, said
    assert len(said.strip().splitlines()) == 7 and '"refused"' in said

"""The README keeps its word: its example runs, its solver passes the laws."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from gen.config.spec import build
from gen.diffusion.path import Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.worlds import measured_order
from tests.test_every import mixture

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
EXAMPLE, SOLVER = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, changed = re.subn(r'"steps": 1600', '"steps": 3', EXAMPLE)
    code, shorter = re.subn(r"changes=one_step\(\)", 'changes={**one_step(), "steps": 2, "objective.pairs": 40}', code)
    assert changed == shorter == 1
    assert len(EXAMPLE.strip().splitlines()) <= 14
    (tmp_path / "example.py").write_text(code)
    runpy.run_path(str(tmp_path / "example.py"))
    assert (tmp_path / "runs/digits.png").exists() and (tmp_path / "runs/leaderboard.html").exists()
    assert "30.0 evaluations each" in capsys.readouterr().out


def test_the_solver_is_one(tmp_path, monkeypatch):
    (tmp_path / "my_half.py").write_text(SOLVER)
    monkeypatch.syspath_prepend(str(tmp_path))
    solver = build("samplers.solvers", "my_half:Half")
    world, noise = mixture(Flow()), torch.randn(64, 2, dtype=torch.float64)
    x = integrate(world, noise, [1.0, 0.9, 0.8], solver)
    assert measured_order(solver, world, x, 0.8, 0.1) == pytest.approx(2, abs=0.15)
    assert integrate(world, x, [0.8, 0.4, 0.0], solver).isfinite().all()
    sys.modules.pop("my_half")

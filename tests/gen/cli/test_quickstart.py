"""The quickstart of photographs, with networks that hardly learn: every part of it runs, and a second call resumes."""

from dataclasses import replace

import pytest

from gen.cli import quickstart
from gen.training.recipes import photographs as recipes


@pytest.mark.slow
def test_photographs(tmp_path, monkeypatch):
    tiny = {"width": 8, "multipliers": [1, 1], "head_width": 8, "attention": [16]}
    run, other = recipes.photographs(), recipes.transformer()
    shorter = {"steps": 4, "batch_size": 4, "sample_every": 0, "validate_every": 0, "save_every": 4}
    model = {"name": "unet", **{k: getattr(run.model, k) for k in ("size", "channels", "classes", "groups")}, **tiny}
    monkeypatch.setattr(recipes, "photographs", lambda: replace(run, model=model, **shorter))
    small = {**other["model"], "width": 16, "depth": 1, "heads": 2}
    monkeypatch.setattr(recipes, "transformer", lambda: {"model": small})
    monkeypatch.setattr(quickstart, "METRICS", ["fid", "coverage"])  # LPIPS needs a package of its own
    monkeypatch.setattr(quickstart, "REMEMBERED", 32)  # pixels: few crops to see
    page, text = quickstart.photographs_quickstart(tmp_path, samples=12)
    rows = [line for line in text.splitlines() if line[:1].isdigit()]
    assert len(rows) == 5 and page.is_file()
    assert "training crops, PNGs" in rows[0]  # what was remembered is nearer than networks of four steps
    again = quickstart.photographs_quickstart(tmp_path, samples=12)[1]
    assert [line.split("±")[0] for line in again.splitlines() if line[:1].isdigit()] == [r.split("±")[0] for r in rows]

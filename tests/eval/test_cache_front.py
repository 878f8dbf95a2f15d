"""The script that sets caches beside fewer steps, on a network that has hardly begun to learn."""

import importlib.util
from pathlib import Path

import pytest

from gen.config.errors import UserError
from gen.eval.sources import collect
from gen.training.run import Run
from gen.training.trainer import train

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "cache_front.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("cache_front", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_writes_a_leaderboard_and_names_the_cached_rows_on_the_front(script, tmp_path, capsys) -> None:
    model = {"name": "dit", "size": 8, "patch": 4, "channels": 1, "classes": 10, "width": 16, "depth": 1, "heads": 2}
    run = Run(model=model, data="digits", objective="denoise", steps=1, batch_size=4, sample_every=0, validate_every=0)
    train(run, tmp_path / "tiny", quiet=True)
    options = ["--steps", "6", "-n", "10", "--timed", "2", "--seconds", "0.001", "--extractor", "pixels"]
    options += ["--caches", "taylorseer_lite", "teacache", "--intervals", "3", "--thresholds", "0.1"]
    assert script.main([str(tmp_path / "tiny"), *options]) == 0
    out = tmp_path / "tiny" / "cache_front"
    records = collect(sorted((out / "records").iterdir()))
    cached = {r.label: r.cache for r in records if r.cache}
    assert set(cached) == {"taylorseer_lite, every 3", "teacache, below 0.1"}
    steps = {r.sampler["steps"] for r in records if not r.cache}
    assert steps == {6, *(cache.equal_steps for cache in cached.values())}
    assert {(r.speed.batch, r.speed.blocks) for r in records} == {(2, 6)}  # all timed in turns
    told = capsys.readouterr().out
    assert "of 2 cached rows are on the Pareto front" in told and told.rstrip().endswith("leaderboard.html")
    named = [label for label in cached if f" {label}: FID" in told]
    assert told.count("\n  #") == len(named) == int(told[: told.index(" of 2 cached")].split()[-1])
    assert 'class="map"' in (out / "leaderboard.html").read_text()


def test_unknown_caches_are_refused(script) -> None:
    with pytest.raises(UserError, match="unknown cache 'tailor'; allowed: fora, taylorseer"):
        list(script.caches(["tailor"], [2], [0.1]))

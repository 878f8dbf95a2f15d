"""Several processes share out the samples of gen sample and gen evaluate: one file, the bits of one process."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from gen.cli import main
from gen.config.errors import UserError
from gen.eval.evaluate import evaluate
from gen.eval.sources import collect
from gen.training.distributed import broadcast, gather, share
from gen.training.trainer import train
from tests.gen.tiny import tiny
from tests.ranks import spread

N = 33  # an odd number, in batches that divide no share
WORDS = ["-n", str(N), "--steps", "2", "--batch-size", "7"]


def both_verbs():
    """Run in each process: gen sample and gen evaluate, in the folder that the environment names."""
    folder, rows = Path(os.environ["SHARED_OUT"]), []
    import gen.pipeline

    integrate = gen.pipeline.integrate

    def counted(f, x, *args, **how):
        rows.append(len(x))
        return integrate(f, x, *args, **how)

    gen.pipeline.integrate = counted
    assert main(["sample", str(folder / "run"), *WORDS, "--out", str(folder / "two.npz")]) == 0
    sampled = sum(rows)
    record = evaluate(folder / "run", n=N, steps=2, batch_size=7, seconds=0.01, out=folder / "two")
    return {"sampled": torch.tensor(sampled), "fid": torch.tensor([record.estimate("fid").value], dtype=torch.float64)}


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    train(tiny(steps=2, validate_every=0), tmp_path / "run", quiet=True)
    ranks = spread(
        "tests.eval.test_shared_out:both_verbs", 2, tmp_path / "ranks", timeout=600, SHARED_OUT=str(tmp_path)
    )
    assert [int(rank["sampled"]) for rank in ranks] == [14, 19]  # each drew two or three of five chunks
    assert main(["sample", str(tmp_path / "run"), *WORDS, "--out", str(tmp_path / "one.npz")]) == 0
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as two:
        assert sorted(one) == sorted(two) and all(np.array_equal(one[key], two[key]) for key in one)
    alone = evaluate(tmp_path / "run", n=N, steps=2, batch_size=7, seconds=0.01)
    (shared,) = collect(sorted((tmp_path / "two").glob("*.json")))
    for key in ("metrics", "strip", "nfe", "identity", "comparability", "floor"):
        assert getattr(shared, key) == getattr(alone, key), key
    assert all(float(rank["fid"]) == alone.estimate("fid").value for rank in ranks)


PAIRS = ["-n", "22", "--shard", "4", "--steps", "2", "--quiet"]
SEARCH = ["-n", "10", "--batch-size", "3", "--steps", "2", "--solver", "euler", "--budget", "4", "--pool", "4"]


def pairs_and_searches():
    """Run in each process: gen pairs and gen search, in the folder that the environment names."""
    import gen.config.checkpoints

    folder, shards = Path(os.environ["SHARED_OUT"]), []
    write = gen.config.checkpoints.write

    def counted(shard, *args, **how):
        shards.append(shard)
        return write(shard, *args, **how)

    gen.config.checkpoints.write = counted
    run = str(folder / "run")
    assert main(["pairs", "--teacher", run, "--out", str(folder / "two"), *PAIRS]) == 0
    for fitness in ("rmse", "fid"):
        out = str(folder / f"two-{fitness}.json")
        assert main(["search", run, "--fitness", fitness, "--out", out, *SEARCH]) == 0
    return {"shards": torch.tensor(len(shards))}


@pytest.mark.slow
def test_two_processes_make_the_pairs_and_find_the_grid_of_one(tmp_path):
    train(tiny(steps=2, validate_every=0), tmp_path / "run", quiet=True)
    ranks = spread(
        "tests.eval.test_shared_out:pairs_and_searches", 2, tmp_path / "ranks", timeout=600, SHARED_OUT=str(tmp_path)
    )
    assert [int(rank["shards"]) for rank in ranks] == [3, 3]
    run = str(tmp_path / "run")
    assert main(["pairs", "--teacher", run, "--out", str(tmp_path / "one"), *PAIRS]) == 0
    names = sorted(str(file.relative_to(tmp_path / "one")) for file in (tmp_path / "one").rglob("*.safetensors"))
    assert len(names) == 6
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    for fitness in ("rmse", "fid"):
        out = tmp_path / f"one-{fitness}.json"
        assert main(["search", run, "--fitness", fitness, "--out", str(out), *SEARCH]) == 0
        assert json.loads(out.read_text()) == json.loads((tmp_path / f"two-{fitness}.json").read_text())


@pytest.mark.parametrize(("n", "world"), [(10, 1), (10, 3), (7, 7), (1000, 8)])
def test_shares_are_all_of_it_in_order(monkeypatch, n, world):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    parts = []
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(share(n))
        assert share(n, collective=True) == range(n)
    assert [i for part in parts for i in part] == list(range(n)) and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_more_processes_than_samples_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match="3 samples for 4 processes"):
        share(3)


def test_one_process_needs_no_other():
    assert gather("mine") == ["mine"] and broadcast("mine") == "mine"

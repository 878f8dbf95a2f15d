"""The scripts that measure engines of several processes: their drift, and their speed beside the prediction."""

import re

import pytest
import torch

from gen.training.run import Run
from gen.training.trainer import train
from scripts import bench_parallel, parallel_drift
from tests.ranks import spread


def test_drift_is_drawn_and_listed(tmp_path, capsys):
    model = {"name": "dit", "preset": "digits", "width": 16, "heads": 2}
    run = Run(model=model, data="digits", objective="denoise", steps=8, batch_size=4, sample_every=0, validate_every=0)
    train(run, tmp_path / "tiny", quiet=True)
    threads = torch.get_num_threads()
    assert parallel_drift.main([str(tmp_path / "tiny"), "--steps", "2", "4", "-n", "2", "--out", str(tmp_path)]) == 0
    assert torch.get_num_threads() == threads == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows[0] == "| parts | method | 2 steps | 4 steps |"
    assert len(rows) == 1 + 2 * (2 + len(parallel_drift.PORTIONS))
    found = {line.split(" | ")[1]: line for line in rows if line.startswith("| 2 |")}
    assert found["DistriFusion"].split(" | ")[2:] == found["PCPP, portion 1"].split(" | ")[2:]
    drawing = (tmp_path / "drift.svg").read_text("utf-8")
    assert {"PCPP", "DistriFusion", "PipeFusion"} <= set(re.findall(r">([^<]+)</text>", drawing))


def small_bench():
    rows = bench_parallel.compare(tokens=16, steps=2, rounds=1)
    return {row["engine"]: torch.tensor([row["measured"], row["predicted"]]) for row in rows}


@pytest.mark.slow
def test_speed_is_measured_beside_the_prediction(tmp_path):
    for rank in spread("tests.scripts.test_parallel:small_bench", 2, tmp_path):
        assert set(rank) == set(bench_parallel.ENGINES)
        assert all((numbers > 0).all() and numbers[1] < 2.01 for numbers in rank.values())

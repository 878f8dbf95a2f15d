"""Speeds at several batch sizes: exact clocks and FLOPs, and every source that the command takes."""

import json
import sys
from types import SimpleNamespace

import diffusers
import pytest
import torch
import torch.nn.functional as F

from gen.cli import main
from gen.config.errors import UserError
from gen.eval import speed_table
from gen.eval.speed_table import Workload, count_flops, measure_speed, speed_text
from gen.eval.throughput import Throughput
from gen.training.trainer import train
from tests.eval.test_throughput import Clock
from tests.gen.tiny import tiny

WEIGHT = torch.ones(8, 16)


def timed(seconds=lambda n: 0.1 + 0.01 * n):
    """A workload of 2 x 8 x 16 FLOPs an image, which takes a call's and an image's time."""
    clock = Clock()

    def run(n):
        clock.now += seconds(n)
        return SimpleNamespace(nfe=3.0, x=torch.ones(n, 8) @ WEIGHT)

    return Workload("made | up", run, params=128), Throughput(clock=clock)


def test_a_row_for_each_batch_size() -> None:
    workload, throughput = timed()
    table = measure_speed(workload, (10, 1, 10), throughput)
    assert [row.speed.batch for row in table.rows] == [1, 10]
    assert [row.latency_ms for row in table.rows] == pytest.approx([110, 200])
    assert [row.speed.images_per_second for row in table.rows] == pytest.approx([1 / 0.11, 50])
    assert [(row.flops, row.joules, row.speed.nfe) for row in table.rows] == [(256, None, 3.0)] * 2
    head, names, _, _, last = speed_text(table).splitlines()
    assert head.startswith("made | up, 128 parameters; ") and names.split()[:2] == ["batch", "images/s"]
    assert last.split()[:3] == ["10", "50", "20"] and "2.56e-07" in last


def test_what_does_not_fit_ends_the_table() -> None:
    def run(n):
        if n > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        clock.now += n

    clock = Clock()
    with pytest.warns(UserWarning, match="8 images at a time do not fit"):
        table = measure_speed(Workload("big", run), (4, 8, 16), Throughput(clock=clock))
    assert [row.speed.batch for row in table.rows] == [4] and table.rows[0].flops is None
    with pytest.raises(torch.OutOfMemoryError):
        measure_speed(Workload("big", run), (8,), Throughput(clock=clock))
    for sizes in ((), (0, 1)):
        with pytest.raises(UserError, match="batch sizes"):
            measure_speed(Workload("big", run), sizes)


def test_energy_is_shared_by_all_images(monkeypatch) -> None:
    read = iter([1_000_000, 1_000_000 + 13 * 4 * 500])
    monkeypatch.setattr(speed_table, "energy_mj", lambda device: next(read))
    workload, throughput = timed(lambda n: 0.25)
    (row,) = measure_speed(workload, (4,), throughput).rows
    assert (row.speed.blocks + row.speed.warmup) * row.joules * 4 == pytest.approx(13 * 4 * 0.5)
    monkeypatch.undo()
    assert speed_table.energy_mj(torch.device("cpu")) is None


def test_flops_are_counted_by_hand_too() -> None:
    q, k, v = torch.ones(2, 3, 16, 8), torch.ones(2, 3, 10, 8), torch.ones(2, 3, 10, 4)
    x, kernel = torch.ones(1, 3, 8, 8), torch.ones(5, 3, 3, 3)
    for inference in (False, True):
        with torch.inference_mode(inference):
            assert count_flops(lambda: F.linear(torch.ones(4, 8), WEIGHT.T, torch.ones(16))) == 2 * 4 * 8 * 16
            assert count_flops(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * 6 * 16 * 10 * (8 + 4)
            assert count_flops(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * 6 * 16 * 16 * (8 + 8)
            assert count_flops(lambda: F.conv2d(x, kernel, padding=1)) == 2 * 5 * 64 * 27


def rows(capsys, *words):
    assert main(["throughput", *map(str, words), "--seconds", "0.01", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_run_a_pipeline_and_a_function(tmp_path, capsys, monkeypatch) -> None:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (32,)}
    net = diffusers.UNet2DModel(sample_size=8, layers_per_block=1, **blocks)
    pipe = diffusers.DDPMPipeline(net, diffusers.DDPMScheduler())
    pipe.save_pretrained(tmp_path / "pipe")
    theirs = rows(capsys, tmp_path / "pipe", "--steps", "2", "--batch-sizes", "2")
    assert theirs["rows"][0]["speed"]["nfe"] == 2 and theirs["rows"][0]["flops"] > 1e5 and theirs["params"] > 1000

    train(tiny(steps=1), tmp_path / "run", quiet=True)
    ours = rows(capsys, tmp_path / "run", "--steps", "3", "--solver", "heun", "--batch-sizes", "1,2")
    assert [row["speed"]["nfe"] for row in ours["rows"]] == [5, 5]
    assert ours["rows"][0]["flops"] == ours["rows"][1]["flops"] > 1e4

    (tmp_path / "theirs.py").write_text("def make(n):\n    return n\n\nnumber = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert rows(capsys, "theirs:make", "--batch-sizes", "1,2")["rows"][1]["flops"] is None
    for words, says in (
        (["theirs:number"], "cannot be called"),
        (["none"], "none"),
        (["theirs:make", "--batch-sizes", "1,x"], "whole numbers"),
        (["theirs:make", "--batch-sizes", "0"], "at least 1"),
    ):
        assert main(["throughput", *words]) == 2 and says in capsys.readouterr().err


def test_a_pipeline_of_foreign_classes_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    for index in (
        {"_class_name": "EvilPipeline"},
        {"_class_name": ["evil", "EvilPipeline"]},
        {"_class_name": "DDPMPipeline", "unet": ["evil", "Evil"], "scheduler": ["diffusers", "DDPMScheduler"]},
        {"_class_name": "DDPMPipeline", "unet": [["evil"], "Evil"]},
        [],
    ):
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        assert main(["throughput", str(tmp_path)]) == 2
        assert "no pipeline of diffusers' own classes" in capsys.readouterr().err

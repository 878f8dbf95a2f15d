"""gen search, end to end on a run of seconds."""

from __future__ import annotations

import argparse
import json

import pytest
import torch

import gen
from gen.cli import main, search
from gen.config.spec import build
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.pipeline import Pipeline
from gen.training.run import Sampler
from gen.training.trainer import train
from tests.gen.tiny import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("search") / "run"
    train(tiny(steps=2), where, quiet=True)
    return where


def test_a_searched_grid_is_written_and_sampled_with(folder, tmp_path, capsys):
    out = tmp_path / "grid.json"
    words = ["search", str(folder), "--solver", "euler", "--steps", "3", "--budget", "40", "-n", "4", "--pool", "8"]
    assert main([*words, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert [line.split()[0] for line in told.splitlines()[:4]] == ["linear", "karras", "exponential", "searched"]
    values = [float(line.split()[2]) for line in told.splitlines()[:4]]
    assert values[3] <= min(values[:3])
    found = json.loads(out.read_text())
    assert found["path"] == {"name": "flow"}
    assert found["mask"] is None
    assert found["evaluations"] == 40
    sample = ["sample", str(folder), "-n", "2", "--solver", "euler", *told.partition("use ")[2].split()]
    assert sample[-6:] == ["--steps", "3", "--grid", "searched", "--grid.file", str(out)]
    assert main([*sample, "--out", str(tmp_path / "a.png")]) == 0


def test_blocks_are_searched_too_and_by_dynamic_programming_times_only(folder, tmp_path, capsys):
    out = tmp_path / "grid.json"
    words = ["search", str(folder), "--solver", "euler", "--steps", "4", "-n", "2", "--pool", "6", "--out", str(out)]
    assert main([*words, "--budget", "12", "--keep", "0.5"]) == 0
    found = json.loads(out.read_text())
    assert found["sites"] == ["blocks.0"]
    assert sum(map(sum, found["mask"])) == 2
    assert main([*words, "--method", "dynamic"]) == 0
    assert json.loads(out.read_text())["evaluations"] == 1
    capsys.readouterr()
    assert main([*words, "--method", "dynamic", "--fitness", "fid"]) == 2
    assert "this fitness has none: use evolution" in capsys.readouterr().err


def test_a_state_may_be_more_than_the_image(tmp_path):
    net = build("models", {"name": "reg", "preset": "digits"}).build().eval()
    pipeline = Pipeline(Denoiser(net, Flow(), Velocity()), (1, 8, 8), 10, Sampler("euler", steps=2))
    args = argparse.Namespace(prompts=None, fitness="rmse", n=2, seed=0, pool=4, keep=0.5, batch_size=2)
    problem, known, sites = search._problem(pipeline, pipeline.sampler, args)
    assert sites[0] == "blocks.0" and pipeline.state_shape == net.state_shape
    assert problem.fitness(known["linear"], None) >= 0


def test_the_batch_size_bounds_the_rows_and_changes_nothing(folder):
    pipeline, seen = gen.load(folder), []
    args = argparse.Namespace(prompts=None, fitness="rmse", n=5, seed=0, pool=4, keep=None)
    pipeline.denoiser.net.register_forward_pre_hook(lambda net, given: seen.append(len(given[0])))
    values, costs = [], []
    for args.batch_size in (5, 2):
        problem, known, _ = search._problem(pipeline, pipeline.sampler, args)
        values.append(problem.fitness(known["linear"], None))
        costs.append(problem.costs())
    assert seen[-1] == 1 and set(seen) == {5, 2, 1}
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    torch.testing.assert_close(*costs, rtol=1e-4, atol=1e-7)


def test_fid_is_a_fitness(folder, tmp_path):
    out = tmp_path / "grid.json"
    words = ["search", str(folder), "--solver", "euler", "--steps", "2", "--fitness", "fid", "-n", "20", "--pool", "4"]
    assert main([*words, "--budget", "3", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["measure"] == "fid"
    assert found["fitness"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--keep", "1.5"], "--keep 1.5: it must be in (0, 1]"),
        (["--method", "evoluton"], "Did you mean 'evolution'?"),
        (["-n", "0"], "argument -n/--n: 0; it must be in [1, 10000000]"),
        (["-n", "1", "--fitness", "fid"], "-n 1: for --fitness fid it must be at least 2"),
        (["--pool", "-3"], "--pool -3: it must be at least 2"),
        (
            ["--data", "digits", "--split", "test"],
            "--data, --split: for --fitness fid; --fitness rmse",
        ),
        (["--budget", "0"], "budget = 0; it must be in [1, inf)"),
        (["--out", "no/such/folder/grid.json"], "give a file in a folder that exists"),
    ],
)
def test_wrong_input_is_one_line(folder, capsys, words, message):
    assert main(["search", str(folder), "--steps", "2", "-n", "2", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1

"""Wrong input, as a user gives it: one line with what was given and what is allowed, a non-zero exit, nothing lost."""

import json
import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gen.cli import main
from gen.config.writing import write_json
from gen.training.run import run_spec
from gen.training.trainer import train
from tests.gen.tiny import tiny


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A trained run, a run.json, and a shelf of broken data."""
    root = tmp_path_factory.mktemp("world")
    train(tiny(steps=2), root / "run", quiet=True)
    for name in ("flipped", "truncated", "missing", "manifest", "format", "noweights"):
        shutil.copytree(root / "run", root / name)
    weights = "net-ema.safetensors"
    content = (root / "flipped/final" / weights).read_bytes()
    (root / "flipped/final" / weights).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    (root / "truncated/final" / weights).write_bytes(content[:100])
    (root / "missing/final" / weights).unlink()
    (root / "manifest/final/manifest.json").write_text('{"format": 1, "run"')
    info = json.loads((root / "format/final/manifest.json").read_text())
    (root / "format/final/manifest.json").write_text(json.dumps(info | {"format": 99}))
    write_json(root / "run.json", {"run": run_spec(tiny())})
    for name, change in {"key": {"stepz": 3}, "type": {"steps": "many"}, "part": {"path": {"name": "flwo"}}}.items():
        write_json(root / f"{name}.json", {"run": run_spec(tiny()) | change})
    for name in ("manifest", "format"):  # else the run's checkpoint stands in
        shutil.rmtree(root / name / "checkpoints")
    (root / "empty").mkdir()
    (root / "runs/one").mkdir(parents=True)
    (root / "runs/one/run.json").write_text("{}")
    (root / "pictures/a").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(root / "pictures/a/good.png")
    (root / "pictures/a/bad.png").write_bytes(b"\x89PNG no picture")
    np.savez(root / "floats.npz", np.zeros((4, 8, 8, 1), dtype=np.float32))
    np.savez(root / "labels.npz", np.zeros((4, 8, 8, 1), dtype=np.uint8), np.zeros(3, dtype=np.int64))
    torch.save({0: torch.ones(2)}, root / "numbers.pt")
    torch.save({"model": {0: torch.ones(2)}}, root / "within.pt")
    (root / "file").write_text("in the way")
    return root


def data(name, **fields):
    return json.dumps({"name": name, **fields})


CASES = {
    "unknown command": ("trian digits", r"unknown command 'trian'. Did you mean 'train'"),
    "unknown option": ("sample {run} --stpes 3", r"unknown option '--stpes'.*Did you mean '--steps'"),
    "unknown recipe": ("train digtis", r"unknown name 'digtis'.*Did you mean 'digits'"),
    "unknown key": ("train {root}/run.json --optim.lrr 1", r"unknown key 'lrr' of AdamW. Did you mean 'lr'"),
    "unknown part": (
        "train {root}/run.json --path flwo",
        r"unknown name 'flwo' in diffusion.path or text.mask_path. Did you mean 'flow'",
    ),
    "value of a wrong type": ("train {root}/run.json --steps many", r"steps: got 'many', expected a whole number"),
    "value out of range": ("train {root}/run.json --steps 0", r"steps = 0; it must be in \[1, 1000000000\]"),
    "batch that cannot be split": ("train {root}/run.json --micro-batch-size 3", r"3 does not divide batch_size = 8"),
    "bad choice": ("train {root}/run.json --precision bf61", r"precision: got 'bf61'. Did you mean 'bf16'"),
    "key with no value": ("train {root}/run.json --steps", r"--steps needs a value"),
    "run file with an unknown key": ("train {root}/key.json", r"unknown key 'stepz' of Run. Did you mean 'steps'"),
    "run file with a wrong type": ("train {root}/type.json", r"steps: got 'many'"),
    "run file with an unknown part": ("train {root}/part.json", r"Did you mean 'flow'"),
    "run file that is not there": ("train {root}/none.json", r"none.json does not exist"),
    "model that does not fit": (
        "train {root}/run.json --out {root}/new --model.size 16",
        r"the data has \[1, 8, 8\]",
    ),
    "resume of nothing": ("train {root}/run.json --out {root}/new --resume {root}/gone", r"gone does not exist"),
    "resume of another run": (
        "train {root}/run.json --out {run} --seed 7",
        r"another run: seed \(0 there, 7 now\)",
    ),
    "output that cannot be made": (
        "train {root}/run.json --out {root}/file/new",
        r"Not a directory|File exists",
    ),
    "empty folder of pictures": (
        [
            "train",
            "{root}/run.json",
            "--out",
            "{root}/new",
            "--data",
            data("folder", path="{root}/empty", size=8),
        ],
        r"empty holds no pictures",
    ),
    "corrupt picture": (
        [
            "train",
            "{root}/run.json",
            "--out",
            "{root}/new",
            "--data",
            data("folder", path="{root}/pictures", size=8),
        ],
        r"bad.png",
    ),
    "data that is not there": (
        ["train", "{root}/run.json", "--out", "{root}/new", "--data", data("npz", path="{root}/none.npz")],
        r"none.npz",
    ),
    "arrays of a wrong type": (
        ["train", "{root}/run.json", "--out", "{root}/new", "--data", data("npz", path="{root}/floats.npz")],
        r"float32",
    ),
    "labels of a wrong length": (
        ["train", "{root}/run.json", "--out", "{root}/new", "--data", data("npz", path="{root}/labels.npz")],
        r"3.*4|4.*3",
    ),
    "weights by number": ("import {root}/numbers.pt --out {root}/new", r"holds no state dict, but 0"),
    "weights by number within": ("import {root}/within.pt --out {root}/new", r"holds no state dict, but model"),
    "run that is not there": ("sample {root}/gone", r"gone does not exist: give the folder of a run"),
    "folder that is no run": ("sample {root}/empty", r"holds no checkpoint, and no model_index.json"),
    "flipped bit": ("sample {root}/flipped", r"damaged: it does not match its sha256"),
    "truncated weights": ("sample {root}/truncated", r"damaged: it has 100 bytes"),
    "missing weights": ("sample {root}/missing", r"cannot be read"),
    "broken manifest": ("sample {root}/manifest", r"manifest.json is no JSON"),
    "manifest of the future": (
        "sample {root}/format",
        r"newer gen \(format 99; this one reads up to 1\): upgrade",
    ),
    "unknown weights": ("sample {run} --weights emma", r"no weights 'emma'; it has ema, raw"),
    "unknown solver": ("sample {run} --solver hune", r"Did you mean 'heun'"),
    "unknown key of a solver": (["sample", "{run}", "--grid", data("karras", rhoo=7)], r"unknown key 'rhoo' of Karras"),
    "no steps": ("sample {run} --steps 0", r"--steps: 0; it must be in \[1, 1000000\]"),
    "device that is not there": ("sample {run} --device cuda:7", r"the device 'cuda:7' cannot be used here"),
    "device without float64": (
        "sample {run} --device mps",
        r"'mps' cannot be used here \(MPS has no float64",
    ),
    "precision that is not there": ("train {root}/run.json --out {root}/new --precision fp16", r"needs a GPU"),
    "start that says nothing": (
        "train {root}/run.json --out {root}/new --parameterisation eps",
        r"does not determine x0 at t = 1",
    ),
    "label that does not exist": ("sample {run} --labels 11", r"allowed: 64 of 0 .. 9"),
    "labels that are no numbers": ("sample {run} --labels a,b", r"expected whole numbers"),
    "two guides": ("sample {run} --guide cfg --guidance-scale 2", r"give one"),
    "output folder that exists": ("sample {run} --out {root}/empty", r"empty exists: give a new folder"),
    "unknown method": ("distill reflwo --teacher {run}", r"Did you mean 'reflow'"),
    "teacher that is not there": ("distill reflow --teacher {root}/gone", r"gone does not exist"),
    "unknown key of a method": ("distill reflow --teacher {run} --objective.pears 3", r"Did you mean 'pairs'"),
    "unknown data": ("evaluate {run} --against digtis", r"Did you mean 'digits'"),
    "unknown extractor": ("evaluate {run} --extractor inceptoin", r"Did you mean 'inception'"),
    "too few samples": ("evaluate {run} -n 0", r"0; it must be in \[1, 10000000\]"),
    "watching nothing": ("watch {root}/empty", r"empty is no run and holds none"),
    "leaderboard of nothing": ("leaderboard {root}/gone", r"gone"),
    "leaderboard without records": ("leaderboard {root}/empty", r"empty"),
    "threads that no machine has": ("train {root}/run.json --threads 99999999", r"99999999; it must be in \[0, 1024\]"),
    "samples without end": ("sample {run} -n 100000000000", r"100000000000; it must be in \[1, 10000000\]"),
    "steps without end": ("train {root}/run.json --steps " + "1" + 40 * "0", r"steps: got .*, expected a whole number"),
    "steps of a sampler without end": ("sample {run} --steps 1000000000", r"it must be in \[1, 1000000\]"),
    "no folder at all": (["train", "{root}/run.json", "--out", ""], r"argument --out: got '', expected Path"),
    "a number that is none": ("sample {run} --guidance-scale 1e999", r"--guidance-scale: got .*, expected a number"),
    "a rate that is none": ("train {root}/run.json --optim.lr 1e999", r"AdamW.lr: got '1e999', expected a number"),
    "betas above one": ("train {root}/run.json --optim.betas [2,3]", r"betas = \(2.0, 3.0\); it must be in \[0, 1\)"),
    "negative decay": (
        "train {root}/run.json --optim.weight_decay -1",
        r"weight_decay = -1.0; it must be in",
    ),
    "negative workers": ("train {root}/run.json --workers -1", r"workers = -1; it must be in \[0, 1024\]"),
    "negative interval": ("train {root}/run.json --save_every -1", r"save_every = -1; it must be in \[0, inf\)"),
    "no optimiser": ("train {root}/run.json --optim null", r"Run.optim: got None, expected a name or a spec of"),
    "a model without a name": ("train {root}/run.json --model :", r"':' is no name of a class"),
    "unknown key of a part beside it": (
        "sample {run} --solver heun --solver.churm 1",
        r"unknown key 'churm' of Heun",
    ),
    "key of a part that is not there": (
        "sample {run} --cache.interval 3",
        r"--cache.interval: run has no cache: give --cache NAME, too",
    ),
    "key of an option that has none": ("sample {run} --seed.x 3", r"unknown option '--seed.x' of gen sample"),
    "key of an extractor that is not named": ("evaluate {run} --extractor.path x", r"eval.features needs a name"),
    "scheduler of diffusers": ("sample {run} --solver DPMSolverMultistepScheduler", r"It is 'dpmpp' here"),
    "option of diffusers": (
        "sample {run} --num_inference_steps 3",
        r"unknown option '--num_inference_steps' of gen sample. It is --steps here",
    ),
    "option of its training": (
        "train {root}/run.json --learning_rate 1",
        r"--learning-rate\? It is --optim.lr here. unknown key 'learning_rate' of Run",
    ),
    "caption for a model of labels": (
        ["sample", "{run}", "--prompt", "a seven"],
        r"run takes labels, and 'a seven' is none of 0 .. 9: give --labels 0,1,2",
    ),
    "folder of runs": ("evaluate {root}/runs --steps 3", r"holds the run one: give .*runs/one.*gen leaderboard .*runs"),
    "sampler for what is no run": ("throughput json:dumps --solver heun", r"json:dumps is no run: leave out --solver"),
    "class that is not there to list": ("list nowhere:Half", r"cannot find 'nowhere:Half'"),
    "unknown folder to list": ("list sampler.solvers", r"Did you mean 'samplers.solvers'"),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_a_non_zero_exit_and_nothing_touched(name, world, capsys, monkeypatch, tmp_path):
    words, message = CASES[name]
    words = words.split() if isinstance(words, str) else words
    words = [w.replace("{root}", str(world)).replace("{run}", f"{world}/run") for w in words]
    monkeypatch.chdir(tmp_path)
    before = contents(world)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged checkpoint that is passed over
        code = main(words)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.strip().splitlines() if not line.startswith("note: ")]
    assert code == 2, captured
    assert len(lines) == 1 and lines[0].startswith("gen: "), captured.err
    assert re.search(message, lines[0]), lines[0]
    assert contents(world) == before
    assert list(tmp_path.iterdir()) == []


def contents(root: Path):
    return {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_resume_passes_over_a_damaged_checkpoint_and_says_so(world, tmp_path):
    shutil.copytree(world / "run", tmp_path / "run")
    train(tiny(steps=4), tmp_path / "run", quiet=True)
    last = tmp_path / "run/checkpoints/step-0000004/net.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="damaged checkpoint: .*step-0000004"):
        done = train(tiny(steps=5), tmp_path / "run", quiet=True)
    assert done.step == 5


def test_a_picture_that_is_not_finite_is_not_drawn():
    from gen.config.errors import NonFinite
    from gen.config.images import to_uint8

    with pytest.raises(NonFinite, match="1 of 4 values"):
        to_uint8(torch.tensor([[0.0, 1.0], [float("nan"), 0.5]]))


def test_a_warm_up_that_never_ends_is_said(world, capsys, tmp_path):
    words = ["train", f"{world}/run.json", "--out", str(tmp_path / "run"), "--schedule.warmup", "1000", "--steps", "5"]
    assert main(words) == 0
    assert (
        "--schedule.warmup is 1000 of 5 steps: the learning rate ends at 5e-06, below --optim.lr"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(("path", "prediction", "own"), [("vp", "eps", "v"), ("ddpm", "score", "v"), ("vp", "v", "")])
def test_that_a_network_of_noise_learns_labels_late_is_said(world, capsys, tmp_path, path, prediction, own):
    chosen = ["--path", path, "--parameterisation", prediction, "--steps", "1"]
    assert main(["train", f"{world}/run.json", "--out", str(tmp_path / "run"), *chosen]) == 0
    said = capsys.readouterr().err
    assert ("labels are learned late" in said) == bool(
        own
    ) and f"The path's own is {own}" in f"{said} The path's own is "

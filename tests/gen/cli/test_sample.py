"""The options of gen sample that edit: what they write is what Pipeline.sample returns; and those that do not fit."""

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import gen
from gen.cli import main
from gen.config.images import to_uint8
from gen.data.lib.pictures import read_picture
from gen.eval.sources import collect
from gen.eval.store import RowFile
from gen.training.run import Sampler
from gen.training.trainer import train
from tests.gen.tiny import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("sample")
    often = {"validate_every": 0, "optim": {"name": "adamw", "lr": 0.1}}
    train(tiny(steps=2, sampler=Sampler("heun", steps=2), **often), where / "run", quiet=True)
    (where / "two").mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(where / "two" / f"{i}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save(where / "mask.png")
    return where


def sampled(folder, tmp_path, *words):
    out = tmp_path / "s.npz"
    assert main(["sample", str(folder / "run"), "--steps", "4", "--quiet", "--out", str(out), *map(str, words)]) == 0
    return torch.from_numpy(np.load(out)["arr_0"]).permute(0, 3, 1, 2)


def test_a_picture_or_a_folder_is_edited(folder, tmp_path):
    pipeline, one = gen.load(folder / "run"), folder / "two/1.png"
    images = torch.stack([read_picture(folder / f"two/{i}.png", (1, 8, 8)) for i in range(2)])
    found = sampled(folder, tmp_path, "--image", one, "--strength", "0.5", "-n", "3")
    assert torch.equal(found, pipeline.sample(3, image=images[1], strength=0.5, steps=4).uint8())
    found = sampled(folder, tmp_path, "--image", folder / "two")
    assert torch.equal(found, pipeline.sample(2, image=images, steps=4).uint8())
    found = sampled(folder, tmp_path, "--image", one, "--mask", folder / "mask.png", "-n", "2")
    assert torch.equal(found[..., :4], to_uint8(images[1]).expand(2, 1, 8, 8)[..., :4])
    assert not torch.equal(found[..., 4:], to_uint8(images[1]).expand(2, 1, 8, 8)[..., 4:])


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("--solver heun --solver.churn .2", {"solver": {"name": "heun", "churn": 0.2}}),
        ("--solver.churn .2", {"solver": {"name": "heun", "churn": 0.2}}),  # the run's own
        (
            "--guide cfg --guide.scale=3 --guide.interval [0.1,2]",
            {"guide": {"name": "cfg", "scale": 3, "interval": (0.1, 2)}},
        ),
        (
            '--cache {"name":"fora","warmup":0} --cache.interval 2',
            {"cache": {"name": "fora", "interval": 2, "warmup": 0}},
        ),
        (
            "--cache custom --cache.policy.interval 2",
            {"cache": {"name": "custom", "policy": {"name": "interval", "interval": 2}}},
        ),
    ],
)
def test_a_part_takes_its_dotted_keys(folder, tmp_path, words, options):
    found = sampled(folder, tmp_path, "-n", 2, *words.split())
    assert torch.equal(found, gen.load(folder / "run").sample(2, steps=4, **options).uint8())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_file_of_samples_in_one_line_and_it_goes_on(folder, tmp_path, monkeypatch, capsys, number):
    words = ["sample", str(folder / "run"), "-n", "8", "--batch-size", "2", "--steps", "2", "--quiet", "--out"]
    assert main([*words, str(tmp_path / "whole.npz")]) == 0
    write, done = RowFile.write, []

    def stopped(self, *given):
        done.append(write(self, *given))
        if len(done) == 3:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(RowFile, "write", stopped)
        assert main([*words, str(tmp_path / "s.npz")]) == 128 + number
    said = capsys.readouterr().err
    assert "s.npz: stopped; the samples that are drawn are kept, the same command goes on" in said
    assert said.count("\n") == 1 and not (tmp_path / "s.npz").exists()
    assert main([*words, str(tmp_path / "s.npz")]) == 0
    ours, theirs = (np.load(tmp_path / name)["arr_0"] for name in ("s.npz", "whole.npz"))
    assert np.array_equal(ours, theirs)


def test_a_trajectory_is_a_sheet_for_every_time(folder, tmp_path):
    sampled(folder, tmp_path, "-n", "3", "--trajectory", tmp_path / "steps")
    names = sorted(file.name for file in (tmp_path / "steps").iterdir())
    assert names == [f"step-{i:03d}.png" for i in range(5)]
    zoomed = gen.load(folder / "run").sample(3, steps=4, trajectory=True).trajectory[:, 2, 0].clamp(-1, 1)
    with Image.open(tmp_path / "steps/step-002.png") as sheet:
        assert np.array_equal(np.array(sheet)[:32:4, :32:4], to_uint8(zoomed[0]).numpy())


def test_the_dtype_is_that_of_the_loaded_weights(folder, tmp_path):
    half = gen.load(folder / "run", dtype="bfloat16").sample(2, steps=4).uint8()
    assert torch.equal(sampled(folder, tmp_path, "-n", "2", "--dtype", "bfloat16"), half)
    assert not torch.equal(sampled(folder, tmp_path, "-n", "2"), half)


def test_an_evaluation_says_its_dtype_and_how_to_repeat_it(folder, capsys):
    words = ["--steps", "1", "-n", "20", "--metrics", "kid", "--dtype", "bfloat16"]
    assert main(["evaluate", str(folder / "run"), *words]) == 0
    (record,) = collect([folder / "run"])
    assert record.sampler["dtype"] == "bfloat16" and "--dtype bfloat16" in record.command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strength", "0.5"], "--strength is given without --image"),
        (["--mask", "{0}/mask.png"], "--mask is given without --image"),
        (["--image", "{0}/two", "-n", "5"], "-n 5, and --image holds 2 pictures: give one, or one for each sample"),
        (["--image", "{0}/gone.png"], "gone.png cannot be read: No such file or directory"),
        (["--image", "{0}/run/run.json"], "run.json cannot be decoded (no picture of a known format)"),
        (["--image", "{0}/two", "--strength", "3"], "strength = 3.0; it must be in (0, 1]"),
        (["--trajectory", "{0}/two"], "two exists: give a new folder for the trajectory"),
        (["--dtype", "float9"], "dtype = 'float9'; allowed: None, \"file\", or a floating dtype"),
        (["--dtype", "bfloat16", "--engine", "auto"], "--dtype and --engine are given; give one"),
    ],
)
def test_what_does_not_fit_is_one_line(folder, tmp_path, capsys, words, message):
    words = [word.format(folder) for word in words]
    assert main(["sample", str(folder / "run"), "--quiet", "--out", str(tmp_path / "a.png"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_pictures_that_are_wider_than_high_are_trained_on_sampled_and_edited(folder, tmp_path):
    """From the command line: --data.size 8x12."""
    for i in range(8):
        pixels = np.random.default_rng(i).integers(0, 256, (10, 15, 3), dtype=np.uint8)
        (tmp_path / "pets" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "pets" / "ab"[i % 2] / f"{i}.png")
    words = ["train", "digits", "--data", "folder", "--data.path", tmp_path / "pets", "--data.size", "8x12"]
    words += ["--model", "dit", "--model.patch", 4, "--model.width", 16, "--model.depth", 1, "--model.heads", 2]
    words += ["--steps", 2, "--batch-size", 4, "--validate-every", 0, "--sample-every", 2, "--quiet"]
    assert main([*map(str, words), "--out", str(tmp_path / "run")]) == 0
    with Image.open(tmp_path / "run/samples/step-0000002.png") as sheet:
        assert sheet.size == (10 * (2 * 12 + 1) - 1, 6 * (2 * 8 + 1) - 1)
    words = [
        "--image",
        tmp_path / "pets/a/0.png",
        "--mask",
        folder / "mask.png",
        "-n",
        2,
        "--trajectory",
        tmp_path / "t",
    ]
    assert sampled(tmp_path, tmp_path, *words).shape == (2, 3, 8, 12)

"""Own pictures from a path to samples by name of class, with nothing spelled that follows from the data."""

import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gen import Run
from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import build, override
from gen.data import spec_at
from gen.data.folder import Folder
from gen.training.recipes.own import own

SMALL = ["--model.width", "16", "--model.groups", "4", "--steps", "1", "--batch_size", "2", "--sample_every", "0"]


@pytest.fixture
def photos(tmp_path):
    for i in range(8):
        path = tmp_path / "photos" / ("cat", "dog")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i, 18, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_path_is_trained_on_and_sampled_by_name(photos, tmp_path, capsys):
    assert main(["train", "own", "--data", "photos", "--size", "8", "--quiet", *SMALL]) == 0
    info = json.loads((tmp_path / "runs/own/final/manifest.json").read_text())
    assert (info["shape"], info["classes"], info["labels"]) == ([3, 8, 8], 2, ["cat", "dog"])
    model = info["run"]["model"]
    assert (model["size"], model["channels"], model["classes"]) == (8, 3, 2)
    assert main(["sample", "runs/own", "-n", "2", "--labels", "dog", "--steps", "1", "--out", "s.npz", "--quiet"]) == 0
    assert np.load("s.npz")["arr_1"].tolist() == [1, 1]
    assert main(["sample", "runs/own", "-n", "2", "--labels", "fox", "--out", "t.npz"]) == 2
    assert "cat, dog" in capsys.readouterr().err
    assert main(["train", "own", "--quiet", *SMALL, "--out", "x"]) == 2
    assert "the run has no data" in capsys.readouterr().err
    assert main(["train", "own", "--data", "photos", "--quiet", *SMALL, "--out", "x"]) == 2
    assert "pictures of several sizes need a size (--size 32" in capsys.readouterr().err
    np.savez("some.npz", arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    for data in ("some.npz", '{"name": "digits"}'):
        assert main(["train", "own", "--data", data, "--size", "8", "--quiet", *SMALL]) == 2
        error = capsys.readouterr().err
        assert "have the one they were stored at: leave it out" in error and error.count("\n") == 1


def test_a_folder_is_listed_once_for_a_run(photos, monkeypatch):
    listed, contents = [], Folder.contents
    monkeypatch.setattr(Folder, "contents", lambda self, path: listed.append(path) or contents(self, path))
    run = override(own(), {"data": "photos", "data.size": "8", "model": "unet"})
    run.data.open("train"), run.data.open("test")
    assert len(listed) == 1
    with pytest.raises(UserError, match="unknown key 'sizes'"):
        override(own(), {"data": "photos", "sizes": "8"})
    assert len(listed) == 1


def test_the_model_follows_the_data_whichever_is_chosen(photos):
    run = override(own(), {"data": "photos", "data.size": "16x8", "model": "unet", "data.flip": "random"})
    assert (run.model.size, run.model.channels, run.model.classes) == ((16, 8), 3, 2) and run.data.flip == "random"
    run = override(own(), {"data": "photos", "data.size": "16", "model": "dit-s/4"})
    assert (run.model.size, run.model.classes) == (16, 2)
    assert Run(data={"name": str(photos), "size": 8}, model="unet").data == build("data", str(photos), size=8)


def test_a_path_is_data_of_its_kind(photos, tmp_path):
    with zipfile.ZipFile("a.zip", "w") as opened:
        for path in photos.rglob("*.jpg"):
            opened.write(path, path.name)
    save_file({"latents": torch.zeros(1, 1, 2, 2)}, "l.safetensors")
    (tmp_path / "l").mkdir()
    (tmp_path / "t").mkdir()
    save_file({"latents": torch.zeros(1, 1, 2, 2)}, "l/l.safetensors")
    (tmp_path / "t/a.txt").write_text("once")
    (tmp_path / "p.jsonl").write_text('{"path": "photos/cat/0.jpg"}')
    (tmp_path / "q.jsonl").write_text('{"prompt": "one", "response": "two"}')
    kinds = {
        "photos": "folder",
        "./photos/cat": "folder",
        "a.zip": "zip",
        "l": "latents",
        "l.safetensors": "latents",
        "t": "text",
        "p.jsonl": "table",
        "q.jsonl": "text",
        "a-{0..3}.tar": "webdataset",
    }
    assert {path: spec_at(path)["name"] for path in kinds} == kinds
    assert build("data", "photos").path == "photos" and spec_at("nowhere") is None
    for text, words in {
        "./nowhere": "data: ./nowhere is not there; give a file or a folder",
        "photos/cat/0.jpg": "data: photos/cat/0.jpg is of no kind that is known",
        "nowhere.zp": "data: nowhere.zp is not there",
        "nowhere": "unknown name 'nowhere' in data.",
    }.items():
        with pytest.raises(UserError) as error:
            build("data", text)
        assert words in str(error.value) and "\n" not in str(error.value)

"""A run goes on with the same content, whatever it is called now, and with no other, whatever it is called."""

import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import gen
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.data.latents import Latents
from gen.training.objectives.denoise import Denoising
from gen.training.trainer import train
from tests.gen.tiny import tiny


@dataclass(frozen=True)
class Judged(Denoising):
    """Denoising with a file and a part that the settings name, as encoders, rewards and tokenisers are."""

    weights: str = ""

    def __call__(self, roles, batch):
        return super().__call__(roles, batch)


def npz(path, seed=0):
    path.parent.mkdir(exist_ok=True)
    x = np.random.default_rng(seed).integers(0, 256, (32, 8, 8, 1), dtype=np.uint8)
    np.savez(path, x, np.arange(32) % 10)
    return {"name": "npz", "path": str(path)}


def test_the_same_data_under_another_path_go_on(tmp_path):
    train(tiny(steps=2, data=npz(tmp_path / "a.npz")), tmp_path / "run", quiet=True)
    (tmp_path / "a.npz").rename(tmp_path / "b.npz")
    data = {"name": "npz", "path": str(tmp_path / "b.npz")}
    assert train(tiny(steps=3, data=data), tmp_path / "run", quiet=True).step == 3
    assert json.loads((tmp_path / "run/run.json").read_text())["run"]["data"]["path"].endswith("b.npz")


def test_other_data_under_the_same_path_are_refused(tmp_path):
    run = tiny(steps=2, data=npz(tmp_path / "a.npz"))
    train(run, tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"another run: the content of data, data\.path, validation differs") as error:
        train(tiny(steps=3, data=npz(tmp_path / "a.npz", 1)), tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_file_that_the_settings_name_is_compared(tmp_path, kind):
    file = tmp_path / "judge" / "weights.bin"
    file.parent.mkdir()
    file.write_bytes(b"one")
    named = file if kind == "file" else file.parent
    train(tiny(steps=1, objective=Judged(weights=str(named))), tmp_path / "run", quiet=True)
    shutil.copytree(file.parent, tmp_path / "copy")
    copy = tmp_path / "copy" / named.relative_to(file.parent)
    train(tiny(steps=2, objective=Judged(weights=str(copy))), tmp_path / "run", quiet=True)
    file.write_bytes(b"two")
    with pytest.raises(UserError, match=r"objective\.weights"):
        train(tiny(steps=3, objective=Judged(weights=str(named))), tmp_path / "run", quiet=True)
    assert checkpoints.manifest_of(tmp_path / "run")["step"] == 2


def test_a_teacher_may_be_named_otherwise_but_not_be_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(tiny(steps=2), "teacher", quiet=True)
    gen.distill("dmd2", "teacher", "student", changes={"steps": 1, "validate_every": 0}, quiet=True)
    changes = {"steps": 2, "validate_every": 0}
    done = gen.distill("dmd2", tmp_path / "teacher", "student", changes=changes, quiet=True)
    assert done.step == 2
    train(tiny(steps=3), "teacher", quiet=True)
    with pytest.raises(UserError, match=r"the content of init, teacher differs"):
        gen.distill("dmd2", "teacher", "student", changes=changes | {"steps": 3}, quiet=True)
    assert checkpoints.manifest_of("student")["step"] == 2


def test_weights_to_start_from_may_be_named_otherwise_but_not_be_others(tmp_path):
    train(tiny(steps=1), tmp_path / "first", quiet=True)
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    train(tiny(steps=1, init=str(tmp_path / "first")), tmp_path / "run", quiet=True)
    assert train(tiny(steps=2, init=str(tmp_path / "copy")), tmp_path / "run", quiet=True).step == 2
    train(tiny(steps=2), tmp_path / "copy", quiet=True)
    with pytest.raises(UserError, match=r"another run: the content of init differs"):
        train(tiny(steps=3, init=str(tmp_path / "copy")), tmp_path / "run", quiet=True)


def test_a_run_that_was_killed_before_its_first_checkpoint_compares_too(tmp_path):
    train(tiny(steps=1, data=npz(tmp_path / "a.npz")), tmp_path / "run", quiet=True)
    for name in ("checkpoints", "final"):
        shutil.rmtree(tmp_path / "run" / name)
    with pytest.raises(UserError, match="the content of data"):
        train(tiny(steps=1, data=npz(tmp_path / "a.npz", 1)), tmp_path / "run", quiet=True)


def latents(path, seed=0, n=40):
    noise = torch.randn(n, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    save_file({"latents": noise, "labels": torch.arange(n) % 10}, path)


@pytest.mark.parametrize("change", ["overwrite", "replace", "truncate", "remove"])
def test_latents_that_change_while_they_are_read_are_noticed(tmp_path, change):
    file = tmp_path / "a.safetensors"
    latents(file)
    data = Latents(str(file)).open("train")
    assert data[0]["x"].shape == (4, 4, 4)
    if change == "overwrite":
        file.write_bytes(file.read_bytes()[:-4] + b"1234")
    elif change == "replace":
        latents(tmp_path / "b.safetensors", 1)
        (tmp_path / "b.safetensors").replace(file)
    elif change == "truncate":
        with file.open("r+b") as stream:
            stream.truncate(1000)
    else:
        file.unlink()
    with pytest.raises(UserError, match="has changed since the data were opened"):
        data[len(data) - 1]


def test_a_picture_that_is_replaced_while_training_is_noticed(tmp_path):
    from PIL import Image

    for label in range(10):
        (tmp_path / "data" / str(label)).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), 10 * label + i).save(tmp_path / "data" / str(label) / f"{i}.png")
    data = {"name": "folder", "path": str(tmp_path / "data"), "size": 8, "channels": 1}
    objective = {"name": f"{__name__}:Repaints", "weights": str(tmp_path / "data" / "3" / "1.png")}
    with pytest.raises(UserError, match=r"3/1\.png has changed since") as error:
        train(tiny(steps=30, data=data, validate_every=0, objective=objective), tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)


@dataclass(frozen=True)
class Repaints(Judged):
    """Replaces a picture at its first step."""

    def __call__(self, roles, batch):
        from PIL import Image

        if batch.step == 0:
            Image.new("L", (8, 8), 200).save(self.weights)
        return super().__call__(roles, batch)

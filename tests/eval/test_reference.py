"""The real images that samples are compared with: named sets are whole, a run's own are split as it was trained."""

import inspect
import json
import shlex
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import spec_of
from gen.data.digits import Digits
from gen.data.npz import Npz
from gen.eval.evaluate import evaluate
from gen.eval.provenance import command, loading_options
from gen.eval.reference import Reference, stack
from gen.eval.sources import collect
from gen.pipeline import load
from gen.training.run import Run
from gen.training.trainer import train


@pytest.fixture
def npz(tmp_path):
    """64 digits with labels, as a file in ADM's layout."""
    images, labels = stack(Digits().open("test"))
    file = tmp_path / "ref.npz"
    np.savez(file, images[:64].permute(0, 2, 3, 1).numpy(), labels[:64].numpy())
    return file


@dataclass(frozen=True)
class Scaled:
    """Pixels times a factor, an extractor with an option that must be given."""

    factor: int
    sha256 = ""

    @property
    def name(self):
        return f"pixels times {self.factor}"

    def load(self):
        return self

    def __call__(self, images):
        return self.factor * images.float().flatten(1)


def test_a_named_set_is_used_whole(npz, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(20):
        Image.fromarray(np.full((8, 8), 10 * i, np.uint8)).save(pictures / f"{i:02d}.png")
    folder = {"name": "folder", "path": str(pictures), "size": 8, "channels": 1}
    spec = {"name": "npz", "path": str(npz)}
    for data, split, n in (
        (spec, None, 64), (spec, "all", 64), (Npz(str(npz)), None, 64), (folder, None, 20),
        ({**spec, "holdout": 0}, None, 64), ({**folder, "holdout": 0.1}, "all", 20),
    ):  # fmt: skip
        reference = Reference.open(data, split, "pixels")
        assert len(reference.real.images) == len(reference.real.features) == n, (data, split)
        assert reference.split == "all" and reference.train is reference.test is reference.other is None
    for data, split, n in (
        ({**spec, "holdout": 0.1}, "test", 6), ({**spec, "holdout": 0.1}, "train", 58),
        (Npz(str(npz), 0.5), "test", 32),
        ({**folder, "test_path": str(pictures)}, "test", 20), ("digits", "test", 360),
        ("digits", "train", 1437),
    ):  # fmt: skip
        reference = Reference.open(data, split, "pixels")
        assert len(reference.real.images) == n and reference.split == split and reference.other is not None
    with pytest.raises(UserError, match="split 'all': digits has fixed splits"):
        Reference.open("digits", "all")
    for data in (spec, Npz(str(npz)), folder, str(npz), str(pictures)):
        with pytest.raises(UserError, match=r"split 'train': .* is used whole, it has no splits: leave it out"):
            Reference.open(data, "train", "pixels")


def test_statistics_beside_the_pictures_are_left_out_with_a_word(npz):
    with np.load(npz) as arrays:
        np.savez(npz, **arrays, mu=np.zeros(2048), sigma=np.eye(3))
    with pytest.warns(UserWarning, match="mu, sigma left out: pictures and labels alone are read"):
        reference = Reference.open({"name": "npz", "path": str(npz)}, extractor="pixels")
    assert len(reference.real.images) == 64


@pytest.fixture
def folder(npz, tmp_path):
    model = {"name": "dit", "size": 8, "patch": 4, "channels": 1, "classes": 10, "width": 16, "depth": 1, "heads": 2}
    run = Run(model=model, data=Npz(str(npz)), objective="denoise", steps=1, batch_size=4, sample_every=0)
    return train(run, tmp_path / "tiny", quiet=True).folder


def test_the_default_is_what_the_run_holds_out_of_its_own_data(folder, npz):
    record = evaluate(folder, n=12, steps=1, seconds=0.01)
    own = Npz(str(npz))
    assert (record.reference.n, record.reference.split) == (6, "test")
    assert record.reference.fingerprint == own.open("test").fingerprint and record.reference.data == spec_of(own)
    assert {"fid", "fid_train", "nearest"} <= {m.column.key for m in record.metrics} and record.floor.n == 58


def test_a_file_of_samples_has_no_data_of_its_own(npz):
    with pytest.raises(UserError, match="samples of another tool: say against what, --against REFERENCE"):
        evaluate(npz)


def test_a_whole_set_has_no_floor_and_no_training_images(folder, npz, tmp_path):
    data = {"name": "npz", "path": str(npz)}
    record = evaluate(folder, against=data, n=12, steps=1, seconds=0.01)
    assert (record.reference.n, record.reference.split, record.floor) == (64, "all", None)
    keys = {m.column.key: m.floor for m in record.metrics}
    assert {"fid", "recall", "accuracy"} <= set(keys) and "fid_train" not in keys and set(keys.values()) == {None}
    with pytest.raises(UserError, match="fid_train needs train_features, but there are no training images"):
        evaluate(folder, against=data, n=12, metrics=["fid_train"])
    assert main(["leaderboard", str(folder), "--out", str(tmp_path / "lb.html")]) == 0


def test_a_run_means_the_same_from_any_working_directory(npz, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = {"name": "dit", "size": 8, "patch": 4, "channels": 1, "classes": 10, "width": 16, "depth": 1, "heads": 2}
    how = {"model": model, "objective": "denoise", "batch_size": 4, "sample_every": 0, "validate_every": 0}
    train(Run(data=Npz("ref.npz"), steps=1, **how), "relative", quiet=True)
    stored = json.loads((tmp_path / "relative" / "run.json").read_text())
    assert stored["run"]["data"]["path"] == str(npz) == load("relative").info["run"]["data"]["path"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["train", str(tmp_path / "relative"), "--steps", "2", "--out", str(tmp_path / "relative")]) == 0
    monkeypatch.chdir(tmp_path)
    assert train(Run(data=Npz("ref.npz"), steps=3, **how), "relative", quiet=True).step == 3


@pytest.mark.slow
def test_the_command_of_a_record_runs_again_as_it_is(folder, npz, tmp_path, monkeypatch):
    how = {"n": 12, "steps": 1, "seconds": 0.01}
    module = __name__
    for options in (
        {},
        {"against": {"name": "npz", "path": str(npz)}},
        {"against": Npz(str(npz), 0.5), "split": "train"},
        {"extractor": {"name": f"{module}:Scaled", "factor": 3}},
        {"extractor": Scaled(2), "against": {"name": "npz", "path": "ref.npz"}},
        {"against": Reference.open("digits", training=str(npz))},
    ):
        monkeypatch.chdir(tmp_path)
        record = evaluate("tiny", **how, **options)
        for file in (folder / "eval").glob("*.json"):
            file.unlink()
        (elsewhere := tmp_path / "elsewhere").mkdir(exist_ok=True)
        monkeypatch.chdir(elsewhere)
        assert main(shlex.split(record.command)[1:]) == 0
        (again,) = collect(folder)
        assert again.metrics == record.metrics and again.command == record.command
        assert again.comparability == record.comparability and again.identity == record.identity


def test_labels_that_nothing_is_trained_on_are_named(tmp_path):
    images = torch.zeros(20, 8, 8, 1, dtype=torch.uint8).numpy()
    for labels, says in ((range(20), "labels 9, 19 on"), ([0] * 10 + [3] * 10, "labels 1, 2 on")):
        file = tmp_path / "few.npz"
        np.savez(file, images, np.array(labels))
        with pytest.warns(UserWarning, match=f"few.npz: nothing to train the {says}"):
            Npz(str(file)).open("train")
    for i in range(20):
        (tmp_path / "folder" / f"c{i:02d}").mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "folder" / f"c{i:02d}" / "a.png")
    from gen.data.folder import Folder

    with pytest.warns(UserWarning, match="nothing to train the labels 9, 19 on"):
        Folder(str(tmp_path / "folder"), 8).open("train")


def test_defaults_of_the_command_line_are_the_runs_own(folder, capsys):
    assert main(["evaluate", str(folder), "-n", "12", "--steps", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reference"]["n"] == 6
    assert load(folder).info["run"]["data"]["name"] == "npz"


def test_labels_have_the_names_of_their_folders(tmp_path, capsys):
    for name in ("china", "flower"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((8, 8), 50 * i, np.uint8)).save(tmp_path / "pictures" / name / f"{i}.png")
    data = {"name": "folder", "path": str(tmp_path / "pictures"), "size": 8, "channels": 1}
    model = {"name": "dit", "size": 8, "patch": 4, "channels": 1, "classes": 2, "width": 16, "depth": 1, "heads": 2}
    run = Run(model=model, data=data, objective="denoise", steps=1, batch_size=4, sample_every=0, validate_every=0)
    folder = train(run, tmp_path / "run", quiet=True).folder
    pipeline = load(folder)
    for named, number in (("flower", 1), (["china", "flower"], [0, 1]), ([1, "china"], [1, 0])):
        assert torch.equal(pipeline.sample(2, named, steps=1).x, pipeline.sample(2, number, steps=1).x)
    (tmp_path / "pictures").rename(tmp_path / "moved")  # the names are stored with the model
    sample = ["sample", str(folder), "-n", "2", "--steps", "1", "--out", str(tmp_path / "s.npz"), "--labels"]
    for words, labels in (("china", [0, 0]), ("flower,china", [1, 0]), ("1", [1, 1])):
        assert main([*sample, words]) == 0
        with np.load(tmp_path / "s.npz") as made:
            assert made["arr_1"].tolist() == labels
    capsys.readouterr()
    assert main([*sample, "chinas"]) == 2
    assert "expected whole numbers, separated by commas, or names: china, flower" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"is none of 0 .. 1 \(china, flower\)"):
        pipeline.sample(2, "chinas")


def test_what_a_teacher_s_folder_names_is_not_run_by_an_evaluation(folder, tmp_path, monkeypatch):
    (tmp_path / "evil_data.py").write_text("raise SystemExit('it ran')")
    monkeypatch.chdir(tmp_path)
    info = load(folder).info
    taught = {**info, "run": {**info["run"], "data": {"name": "pairs", "path": "p"}, "teacher": "downloaded"}}
    evil = {"run": {"data": {"name": "evil_data:Evil"}}}
    monkeypatch.setattr("gen.pipeline.checkpoints.manifest_of", lambda where: evil)
    student = replace(load(folder), info=taught)
    with pytest.raises(UserError, match=r"the teacher of tiny names 'evil_data:Evil'.*--allow evil_data"):
        evaluate(student, n=12)
    assert student.sample(2, steps=1).uint8().shape == (2, 1, 8, 8)


def test_the_command_allows_what_the_run_names(folder):
    pipeline = load(folder)
    model = {"name": "my_pkg.nets:Net", "inner": [{"name": "other:Part"}]}
    run = {**pipeline.info["run"], "model": model}
    options = loading_options(replace(pipeline, info={**pipeline.info, "run": run}))
    assert options == {"allow": ["my_pkg", "other"]} and loading_options(pipeline) == {}
    reference = Reference.open("digits", "test", "pixels")
    given = {name: parameter.default for name, parameter in inspect.signature(evaluate).parameters.items()}
    words = shlex.split(command(replace(pipeline, info={"run": run}), reference, {**given, "samples": folder}, 10))
    assert words[-4:] == ["--allow", "my_pkg", "--allow", "other"]


def test_so_many_training_images_are_looked_at_only_if_they_are_asked_for(folder, monkeypatch):
    monkeypatch.setattr("gen.eval.reference.MANY", 50)
    how = {"n": 12, "steps": 1, "seconds": 0.01}
    record = evaluate(folder, **how)
    keys = {m.column.key for m in record.metrics}
    assert "fid" in keys and not {"nearest", "fid_train"} & keys and all(m.floor is None for m in record.metrics)
    assert record.neighbours is None
    assert evaluate(folder, metrics=["nearest"], **how).estimate("nearest").value > 0

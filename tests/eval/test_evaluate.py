"""Whole evaluations, of a pipeline whose samples are real digits with a little noise."""

import base64
import io
import json
import shlex
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from gen.config.errors import UserError
from gen.data.digits import Digits
from gen.diffusion.noise import Noise, sample_seeds
from gen.eval.evaluate import evaluate
from gen.eval.leaderboard import leaderboard
from gen.eval.pictures import strip
from gen.eval.provenance import brief_spec, loading_options, machine
from gen.eval.record import Record, from_json, to_json
from gen.eval.reference import Reference, stack
from gen.eval.sampler_text import sampler_text
from gen.eval.sources import collect
from gen.pipeline import load
from gen.samples import Samples
from gen.training.run import Sampler


@dataclass(frozen=True, eq=False)
class Copier:
    """A pipeline that knows nothing but training digits: sample i is one of its label, with noise of its seed."""

    images: torch.Tensor
    labels: torch.Tensor
    noise: float = 0.1
    name: str = "copier"
    classes: int = 10
    params: int = 7
    shape: tuple[int, ...] = (1, 8, 8)
    folder: None = None

    def plan(self, **changes) -> Sampler:
        return Sampler(**changes)

    def sample(self, n, cond=None, *, steps=18, solver=None, guide=None, seed=0, batch_size=250, start=0) -> Samples:
        draw = Noise(tuple(sample_seeds(seed, n, start)))
        y = torch.arange(start, start + n) % 10
        which = draw.integers("which", 100).tolist()
        rows = torch.tensor([int((self.labels == int(k)).nonzero()[w]) for k, w in zip(y, which, strict=True)])
        x = self.images[rows].float() / 127.5 - 1 + self.noise * draw.normal("noise", self.shape)
        return Samples(x, {"y": y}, float(steps), 0.0)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.open("digits")


@pytest.fixture(scope="module")
def copier() -> Copier:
    images, labels = stack(Digits().open("train"))
    assert labels is not None
    return Copier(images, labels)


@pytest.fixture(scope="module")
def record(copier, reference):
    return evaluate(copier, against=reference, n=60, solver="euler", steps=3, seed=5, label="Copier", seconds=0.01)


def test_record_is_strict_json_and_complete(record) -> None:
    text = json.dumps(to_json(record), allow_nan=False)
    again = json.loads(text, parse_constant=lambda word: pytest.fail(word))
    assert from_json(again, Record, "it") == record
    assert record.nfe == 3.0 and record.n == 60 and record.seed == 5 and record.params == 7
    assert record.sampler["solver"] == {"name": "euler"} and record.sampler["steps"] == 3
    assert record.reference.n == 360 and record.reference.fingerprint == Digits().open("test").fingerprint
    assert len(record.extractor.sha256) == 64 and record.rounding and record.labels == "balanced, i mod 10"
    keys = [m.column.key for m in record.metrics]
    assert keys == ["fid", "kid", "precision", "recall", "coverage", "accuracy", "nearest", "fid_train"]
    assert all(m.floor.n in (360, 1437) and m.estimate.n == 60 for m in record.metrics)
    assert record.speed.nfe == 3.0 and record.speed.images_per_second > 0
    assert record.versions["torch"] == torch.__version__ and record.date.endswith("+00:00")
    words = shlex.split(record.command.replace("gen.evaluate(pipeline, ", "").rstrip(")"))
    assert {"solver=euler,", "steps=3,", "n=60,", "seed=5,", "label=Copier,"} <= set(words)


def test_numbers_are_sane(record, copier, reference) -> None:
    value = {m.column.key: m.estimate.value for m in record.metrics}
    floor = {m.column.key: m.floor.value for m in record.metrics}
    assert floor["fid"] < value["fid"] and record.floor.n == 1437
    assert value["accuracy"] > 0.9 and 0.98 < floor["accuracy"] < 1  # of held-out digits, not learned ones
    assert value["nearest"] < 0.6 * floor["nearest"]  # it copies, and that shows
    assert 0.8 < floor["recall"] < 1 and floor["coverage"] > value["coverage"]
    noisy = Copier(copier.images, copier.labels, noise=1.0)
    worse = evaluate(noisy, against=reference, n=60, seconds=0.01)
    assert worse.estimate("fid").value > 3 * value["fid"] and worse.estimate("kid").value > value["kid"]
    assert worse.estimate("accuracy").value < value["accuracy"]


def test_numbers_have_the_same_bits_for_any_batch_size(record, copier, reference) -> None:
    how = {"against": reference, "n": 60, "solver": "euler", "steps": 3, "seed": 5, "label": "Copier", "seconds": 0.01}
    small = evaluate(copier, **how, batch_size=7)
    for key in ("metrics", "floor", "strip", "nfe", "comparability", "identity"):
        assert getattr(small, key) == getattr(record, key), key


def test_comparability_is_the_protocol_and_nothing_else(record, copier, reference) -> None:
    def key(pipeline=copier, against=reference, n=60, **how) -> str:
        return evaluate(pipeline, against, n=n, seconds=0.01, **how).comparability

    assert key() == key(steps=9, seed=1) == key(Copier(copier.images, copier.labels, 0.5)) == record.comparability
    others = {
        key(n=50),
        key(against=Reference.open("digits", "train")),
        key(against=Reference.open("digits", "test", "pixels")),
        record.comparability,
    }
    assert len(others) == 4


def test_pixels_have_no_classifier_and_so_no_accuracy(copier) -> None:
    found = evaluate(copier, against="digits", extractor="pixels", n=20, seconds=0.01)
    assert "accuracy" not in [m.column.key for m in found.metrics]
    assert vars(found.extractor) == {"name": "pixels", "sha256": "", "dim": 64}
    with pytest.raises(UserError, match="accuracy needs logits, but the extractor pixels is no classifier"):
        evaluate(copier, against="digits", extractor="pixels", n=20, seconds=0.01, metrics=["accuracy"])


def test_writes_one_file_per_evaluation(copier, reference, tmp_path) -> None:
    how = {"against": reference, "n": 20, "seconds": 0.01, "out": tmp_path}
    for steps in (1, 2, 2):
        last = evaluate(copier, **how, steps=steps)
    assert len(list(tmp_path.iterdir())) == 2 and last in collect(sorted(tmp_path.iterdir()))
    evaluate(copier, **how, steps=2, metrics=["recall"])
    assert len(list(tmp_path.iterdir())) == 3  # another question, another file


@pytest.fixture
def folder(tmp_path):
    from gen.training.run import Run
    from gen.training.trainer import train

    model = {"name": "dit", "size": 8, "patch": 4, "channels": 1, "classes": 10, "width": 16, "depth": 1, "heads": 2}
    run = Run(model=model, data="digits", objective="denoise", steps=1, batch_size=4, sample_every=0, validate_every=0)
    train(run, tmp_path / "tiny", quiet=True)
    return tmp_path / "tiny"


def test_evaluates_a_run_folder_and_leaves_the_record_there(folder, tmp_path, reference) -> None:
    record = evaluate(folder, against=reference, n=12, solver="heun", steps=2, seconds=0.01)
    (file,) = (folder / "eval").glob("*.json")
    assert collect(file) == [record]
    assert record.run == "tiny" and record.nfe == 3.0 and record.checkpoint["step"] == 1
    assert shlex.split(record.command)[:7] == ["gen", "evaluate", str(folder), "--solver", "heun", "--steps", "2"]
    assert evaluate(folder, against=reference, n=12, solver="heun", steps=2, seconds=0.01).metrics == record.metrics
    assert len(list((folder / "eval").iterdir())) == 1
    assert leaderboard(folder, tmp_path / "lb.html").stat().st_size > 5000


def test_the_command_names_weights_and_device_that_are_not_the_usual(folder, reference) -> None:
    from gen.cli import main

    usual, raw = load(folder), load(folder, "raw")
    assert usual.weights == "ema" and loading_options(usual) == {}
    elsewhere = SimpleNamespace(**{**vars(raw), "device": "cuda:1"})  # as on a machine that has one
    assert loading_options(elsewhere) == {"weights": "raw", "device": "cuda:1"}
    assert loading_options(replace(raw, info={"run": {"ema": []}})) == {}
    record = evaluate(raw, against=reference, n=12, steps=1, seconds=0.01)
    words = shlex.split(record.command)
    assert words[-2:] == ["--weights", "raw"]
    assert main(words[1:]) == 0  # and what it says is what was measured
    (file,) = (folder / "eval").glob("*.json")
    (again,) = collect(file)
    assert again.checkpoint["weights"] == "raw" and again.metrics == record.metrics
    assert again.command == record.command and again.identity == record.identity


def test_searched_files_are_known_by_their_content(folder, tmp_path, reference) -> None:
    file = tmp_path / "found.json"

    def measured(middle: float, mask: list[list[bool]]) -> Record:
        found = {"path": {"name": "flow"}, "times": [1.0, middle, 0.0], "sites": ["blocks.0"], "mask": mask}
        file.write_text(json.dumps(found))
        how = {"grid": {"name": "searched", "file": str(file)}, "solver": "euler", "steps": 2}
        cache = {} if not mask else {"cache": {"name": "searched", "file": str(file)}}
        return evaluate(folder, against=reference, n=10, seconds=0.01, **how, **cache)

    mask = [[True], [False]]
    records = [measured(0.5, []), measured(0.4, []), measured(0.4, mask), measured(0.4, mask[::-1])]
    assert [r.sampler["grid"]["times"][1] for r in records] == [0.5, 0.4, 0.4, 0.4]
    assert len(records[2].sampler["cache"]["sha256"]) == 64 and records[2].cache.map.sites == ("blocks.0",)
    assert len({r.identity for r in records}) == len(list((folder / "eval").iterdir())) == 4
    assert measured(0.4, mask[::-1]).identity == records[3].identity
    words = shlex.split(records[0].command)
    assert json.loads(words[words.index("--grid") + 1]) == {"name": "searched", "file": str(file)}


def test_refuses_what_does_not_fit(copier, reference, tmp_path) -> None:
    colour = Copier(copier.images, copier.labels, shape=(3, 32, 32))
    for call, says in (
        (lambda: evaluate(colour, against=reference), "copier has images [3, 32, 32], digits holds [1, 8, 8]"),
        (lambda: evaluate(copier, against=reference, n=0), "n = 0; it must be in [1, 10000000]"),
        (lambda: evaluate(copier, against=reference, batch_size=0), "batch_size = 0; it must be in"),
        (lambda: evaluate(copier, split="val"), "unknown split 'val'"),
        (lambda: evaluate(copier, extractor="digit_cnn"), "Did you mean 'digits_cnn'?"),
        (lambda: evaluate(copier, against="digit"), "Did you mean 'digits'?"),
        (lambda: evaluate(copier, metrics=["fidd"]), "Did you mean 'fid'?"),
        (lambda: evaluate(copier, metrics=["fid", "fid"]), "each column once; these have ['fid', 'fid']"),
        (lambda: evaluate(copier, metrics=[]), "at least one"),
        (lambda: evaluate(tmp_path / "none"), "does not exist"),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("shape", "size"), [((1, 8, 8), (356, 32)), ((3, 100, 200), (1352, 64))])
def test_strip_shows_ten_pictures_with_clear_gaps(shape, size) -> None:
    images = torch.full((10, *shape), 200, dtype=torch.uint8)
    picture = Image.open(io.BytesIO(base64.b64decode(strip(images))))
    assert picture.size == size and picture.mode in ("LA", "RGBA")
    alpha = torch.tensor(list(picture.getchannel("A").tobytes())).reshape(size[1], size[0])
    assert int((alpha[0] == 0).sum()) == 9 * (size[1] // 8)


def test_machine_names_the_processor() -> None:
    assert machine(torch.device("cpu")).endswith("1 thread")


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"solver": "heun", "steps": 8, "grid": "linear"}, "heun, 8 steps"),
        (
            {"solver": {"name": "heun", "churn": 0.4}, "steps": 8, "grid": {"name": "linear", "stop": 0.1}},
            "heun(churn=0.4), 8 steps, linear(stop=0.1) grid",
        ),
        (
            {"solver": "unipc", "steps": 1, "grid": "karras", "guide": "cfg", "cache": {"name": "fora", "warmup": 2}},
            "unipc, 1 step, karras grid, cfg(scale=1.5), fora(interval=3, warmup=2)",
        ),
        (
            {"solver": "euler", "steps": 5, "grid": {"name": "coarse", "inner": {"name": "karras", "rho": 5.0}}},
            "euler, 5 steps, coarse(inner=karras(rho=5.0)) grid",
        ),
    ],
)
def test_a_page_says_the_options_that_are_not_the_default_ones(copier, how, text) -> None:
    assert sampler_text(brief_spec(copier, how)) == text

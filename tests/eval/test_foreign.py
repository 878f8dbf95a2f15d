"""Samples of other tools: measured as ours are, listed beside them, with "unknown" where nobody knows."""

import json
import os
import shlex
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from gen.cli import main
from gen.config.errors import UserError
from gen.data.digits import Digits
from gen.eval.evaluate import evaluate, extract_part
from gen.eval.extraction import Rows
from gen.eval.image_sets import open_images
from gen.eval.record import UNKNOWN, Record, from_json, record_folder, to_json
from gen.eval.reference import Reference, stack
from gen.eval.sources import collect
from gen.training.distributed import processes
from tests.eval.test_evaluate import Copier
from tests.ranks import spread

IMAGES, LABELS = stack(Digits().open("train"))
N = 60


@pytest.fixture(scope="module")
def copier() -> Copier:
    return Copier(IMAGES, LABELS)


@pytest.fixture(scope="module")
def drawn(copier) -> tuple[torch.Tensor, torch.Tensor]:
    samples = copier.sample(N, seed=5)
    return samples.uint8(), samples.cond["y"]


@pytest.fixture
def npz(drawn, tmp_path):
    np.savez(tmp_path / "samples.npz", drawn[0].movedim(1, -1).numpy(), drawn[1].numpy())
    return tmp_path / "samples.npz"


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.open("digits")


def test_the_same_samples_have_the_same_numbers_whoever_gives_them(drawn, copier, npz, reference, tmp_path) -> None:
    ours = evaluate(copier, reference, n=N, seed=5, seconds=0.01)
    folder = tmp_path / "pngs"
    folder.mkdir()
    for i, image in enumerate(drawn[0]):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:06d}.png")
    assert evaluate(copier.sample(N, seed=5), reference).metrics == ours.metrics
    theirs = {
        kind: evaluate(given, reference) for kind, given in (("npz", npz), ("folder", folder), ("tensor", drawn[0]))
    }
    for kind, record in theirs.items():
        keys = [m.column.key for m in record.metrics]
        assert record.samples.kind == kind and ("accuracy" in keys) == (kind == "npz")
        assert [m.estimate for m in record.metrics] == [m.estimate for m in ours.metrics if m.column.key in keys]
        assert (record.nfe, record.speed, record.params, record.device, record.sampler) == (None, None, None, None, {})
        assert record.rounding == record.labels == UNKNOWN and record.strip == ours.strip and record.checkpoint is None
        assert record.comparability == ours.comparability and record.neighbours == ours.neighbours
        assert from_json(json.loads(json.dumps(to_json(record))), Record, kind) == record
    assert theirs["npz"].samples.counts == (6,) * 10 and theirs["folder"].samples.format == "png"
    assert ours.samples.kind == "pipeline" and len({record.identity for record in theirs.values()}) == 3


def test_the_verb_writes_beside_the_samples_and_its_command_runs_again(npz, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "samples.npz", "--against", "digits", "--metrics", "fid,kid", "-n", "40"]) == 0
    assert "samples.npz: 40 samples, features digits_cnn; FID" in capsys.readouterr().out
    (record,) = collect("samples.npz")
    assert record.samples.available == N and record.n == 40 and record.seed == 0
    assert record_folder(npz) == tmp_path / "samples.npz.eval" and len(list(record_folder(npz).iterdir())) == 1
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(shlex.split(record.command)[1:]) == 0
    assert collect(npz) == [collect(npz)[0]] and collect(npz)[0].metrics == record.metrics
    assert main(["leaderboard", str(npz), "--out", str(tmp_path / "lb.html")]) == 0
    assert "samples.npz" in (tmp_path / "lb.html").read_text()


def test_options_of_sampling_are_refused_and_options_of_the_set_are_not(npz, capsys, tmp_path) -> None:
    for words in (["--solver", "heun"], ["--steps", "4"], ["--guidance-scale", "2"], ["--weights", "ema"]):
        assert main(["evaluate", str(npz), "--against", "digits", *words]) == 2
        assert f"is no run, its samples are there: leave out {words[0]}" in capsys.readouterr().err
    with pytest.raises(UserError, match="is no run, its samples are there: leave out steps"):
        evaluate(npz, "digits", steps=3)
    for call, says in (
        (lambda: evaluate(npz, "digits", n=61), "samples.npz holds 60 pictures, 61 were asked for"),
        (lambda: evaluate(npz, "digit"), "digit is no file, no folder and no data set. Did you mean 'digits'?"),
        (lambda: evaluate(npz, tmp_path / "none.npz"), "none.npz is no file, no folder and no data set"),
        (lambda: evaluate(tmp_path / "no", "digits", out=tmp_path / "no.eval"), "no does not exist: give a run"),
        (lambda: evaluate(torch.zeros(3, 1, 8, 8), "digits"), "a tensor of pictures is uint8"),
        (lambda: evaluate(torch.zeros(12, 3, 8, 8, dtype=torch.uint8), "digits"), "not comparable"),
        (lambda: evaluate(3, "digits"), "expected a Pipeline, the folder of a run"),
        (lambda: evaluate(npz, Reference.open("digits"), extractor="pixels"), "these already: leave out extractor"),
        (lambda: evaluate(npz, "digits", metrics=["psnr"]), "psnr needs pairs, but the samples have no targets"),
        (lambda: evaluate(npz, "digits", metrics=["clip_score"]), "the extractor digits_cnn reads no text"),
        (lambda: evaluate(npz, "digits", metrics=["sfid"]), "the extractor digits_cnn has no spatial features"),
        (lambda: evaluate(npz, "digits", prompts=__file__), "prompts: the extractor digits_cnn reads no text"),
        (lambda: evaluate(npz, "digits", prompts="p.txt"), "p.txt does not exist: give a text file"),
        (lambda: evaluate(npz, "digits", out=npz), "out: " + str(npz) + " is a file, a folder is needed"),
        (lambda: evaluate(npz, npz, split="test"), "split 'test': samples.npz is used whole, it has no splits"),
        (lambda: evaluate(npz), "samples of another tool: say against what"),
        (lambda: evaluate(npz, "digits", paired=npz.parent), "holds no checkpoint of a run, and no pictures"),
        (lambda: extract_part((1, 2), samples=npz, against="digits"), "part 1/2: give features"),
        (lambda: extract_part((3, 2), samples=npz, against="digits", features="f"), "allowed are 1/2 to 2/2"),
    ):  # fmt: skip
        with pytest.raises(UserError) as error:
            call()
        assert says in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "no.eval").exists()


def test_pairs_classes_training_images_and_any_reference(npz, drawn, copier, reference, tmp_path) -> None:
    np.savez(tmp_path / "truth.npz", (drawn[0] ^ 1).movedim(1, -1).numpy())
    record = evaluate(npz, "digits", paired=tmp_path / "truth.npz", metrics=["psnr"])
    assert record.estimate("psnr").value == pytest.approx(10 * np.log10(255.0**2))
    few = evaluate(npz, "digits", paired=tmp_path / "truth.npz", metrics=["psnr"], n=20)  # of the same rows of both
    assert few.estimate("psnr").value == record.estimate("psnr").value and few.samples.available == N
    np.savez(tmp_path / "more.npz", np.concatenate([drawn[0].movedim(1, -1).numpy()] * 2))
    with pytest.raises(UserError, match=f"paired: more.npz holds {2 * N} pictures for {N} samples: one for each"):
        evaluate(npz, "digits", paired=tmp_path / "more.npz", metrics=["psnr"], n=20)
    np.savez(tmp_path / "real.npz", IMAGES[:300].movedim(1, -1).numpy(), LABELS[:300].numpy())
    wise = evaluate(npz, tmp_path / "real.npz", class_wise=True, metrics=[{"name": "class_fid", "least": 5}])
    (table,) = wise.per_class
    assert table.classes == tuple("0123456789") and all(e.value > 0 for e in table.estimates)
    for name, classes in (("a", "xy"), ("b", "yz")):
        for i, image in enumerate(drawn[0][:20]):
            (tmp_path / name / classes[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(tmp_path / name / classes[i % 2] / f"{i}.png")
    with pytest.raises(UserError, match=r"but labels are x, y ... of the samples and y, z ... here"):
        evaluate(tmp_path / "a", tmp_path / "b", metrics=["class_fid"])
    named = evaluate(tmp_path / "a", tmp_path / "a", metrics=["class_fid"])
    assert named.per_class[0].classes == ("x", "y")
    known = evaluate(npz, tmp_path / "real.npz", training="digits", metrics=["nearest", "authpct", "fld"])
    assert known.estimate("nearest") == evaluate(npz, reference, metrics=["nearest"]).estimate("nearest")
    assert known.reference.split == "all" and len(known.reference.other) == 64 and known.neighbours is not None
    for against in (IMAGES[:300], copier_reference(copier)):
        assert evaluate(npz, against, metrics=["fid"]).reference.n in (300, 1000)


def copier_reference(copier):
    from gen.eval.drawn import Decoder, DrawnImages

    return DrawnImages(Decoder(copier, None), {}, 1000, 1, 250)


@dataclass(frozen=True)
class Reader:
    """An extractor that reads text: a picture's embedding is its mean, a text's is its length."""

    batch: int = 16
    name = "reader"
    sha256 = ""

    def load(self):
        return self

    def __call__(self, images):
        return images.flatten(1).float()

    def embed(self, images):
        return torch.nn.functional.normalize(self(images)[:, :2] + 1, dim=1)

    def text(self, texts):
        return torch.nn.functional.normalize(torch.tensor([[1.0, len(text)] for text in texts]), dim=1)


@pytest.mark.slow
def test_what_a_newcomer_tried(npz, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with np.load(npz) as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
    np.savez("truth.npz", images ^ 1)
    words = ["evaluate", "samples.npz", "--against", "digits", "--features", "kept", "--out", "records", "--label"]
    assert main([*words, "-here"]) == 2  # argparse's own rule
    assert main([*words[:-1], "--label=-here", "--paired", "truth.npz", "--metrics", "psnr,fid"]) == 0
    (record,) = collect("records")  # a folder that --out named
    assert record.label == "-here" and abs(record.estimate("psnr").value - 48.1308) < 1e-3  # 20 log10 255
    assert main([*shlex.split(record.command)[1:], "--out", "again"]) == 0 and collect("again")[0].label == "-here"
    assert main([*words, "here"]) == 0
    assert any("--label here " in f"{one.command} " for one in collect("records"))  # and not the folder of that name
    np.savez("negative.npz", images, labels - 5)
    np.savez("huge.npz", images, labels + 2**40)
    np.savez("bare.npz", images)
    np.savez("colour.npz", np.repeat(images, 3, axis=3))
    for call, says in (
        (lambda: evaluate("negative.npz", "digits"), "labels run from -5 to 4; allowed: 0 and up"),
        (lambda: evaluate("samples.npz", "negative.npz"), "labels run from -5 to 4; allowed: 0 and up"),
        (lambda: evaluate("huge.npz", "digits"), "give num_classes if there are more than"),
        (lambda: evaluate("bare.npz", "digits", class_wise=True), "class_fid needs labelled_features, but"),
        (lambda: evaluate("bare.npz", "digits", training="colour.npz"), "training: colour.npz holds"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=says):
            call()
    (tmp_path / "list.toml").write_text('[[published]]\nlabel = "a"\nsource = "b"\nvalues = {fid = "2.27"}\n')
    assert main(["leaderboard", "list.toml"]) == 2
    assert "expected" in (error := capsys.readouterr().err) or "allowed: finite numbers" in error


def test_prompts_are_read_line_by_line(npz, tmp_path) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"{'x' * i}\n" for i in range(N)))
    record = evaluate(npz, "digits", prompts=tmp_path / "prompts.txt", extractor=Reader(), metrics=["clip_score"])
    assert 0 < record.estimate("clip_score").value <= 100 and "prompts" in record.command
    (tmp_path / "few.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match=r"few.txt has 2 lines for 60 samples"):
        evaluate(npz, "digits", prompts=tmp_path / "few.txt", extractor=Reader())


def test_parts_leave_nothing_to_the_last_call(npz, tmp_path, monkeypatch, capsys) -> None:
    words = ["evaluate", str(npz), "--against", "digits", "--metrics", "fid", "--features", str(tmp_path / "kept")]
    assert main([*words, "--part", "2/2"]) == 0
    assert "part 2/2 is done" in capsys.readouterr().out
    assert main([*words, "--part", "1/2"]) == 0

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Rows, "_outputs", interrupted)
    assert main([*words[:-1], str(tmp_path / "new")]) == 130
    says = f"interrupted; the features computed so far are kept in {tmp_path / 'new'}: the same command goes on"
    assert says in capsys.readouterr().err
    monkeypatch.setattr(Rows, "_outputs", lambda *args: pytest.fail("it was computed again"))
    assert main(words) == 0
    assert main([*words, "--part", "1:2"]) == 2
    assert "expected k/n, 1/4 to 4/4" in capsys.readouterr().err


def in_a_launcher():
    """Run in each process: an evaluation of a folder that the environment names, of pictures in small chunks."""
    root = os.environ["FOREIGN"]
    how = {"extractor": Reader(), "metrics": ["fid", "kid"], "features": f"{root}/kept{processes()[1]}"}
    record = evaluate(f"{root}/a.npz", f"{root}/b.npz", **how)
    return {"fid": torch.tensor([record.estimate("fid").value, record.estimate("fid").se], dtype=torch.float64)}


@pytest.mark.slow
def test_one_two_and_three_processes_give_the_same_bits(tmp_path) -> None:
    for name, rows in (("a", slice(0, 400)), ("b", slice(400, 1000))):
        np.savez(tmp_path / f"{name}.npz", IMAGES[rows].movedim(1, -1).numpy())
    alone = evaluate(tmp_path / "a.npz", tmp_path / "b.npz", extractor=Reader(), metrics=["fid", "kid"])
    for world in (2, 3):
        folder = tmp_path / f"ranks{world}"
        ranks = spread("tests.eval.test_foreign:in_a_launcher", world, folder, FOREIGN=str(tmp_path))
        found = [rank["fid"].tolist() for rank in ranks]
        assert found == [[alone.estimate("fid").value, alone.estimate("fid").se]] * world
    assert open_images(tmp_path / "a.npz").fingerprint == alone.samples.fingerprint

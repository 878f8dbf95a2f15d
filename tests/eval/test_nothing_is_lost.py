"""What is measured is kept: no picture, clock, metric or file beside it takes a finished evaluation down."""

from dataclasses import replace

import pytest
import torch

from gen.cli import main
from gen.config.errors import UserError
from gen.data.digits import Digits
from gen.eval import evaluate as module
from gen.eval.evaluate import evaluate
from gen.eval.extraction import Extraction, Rows
from gen.eval.features.digits_cnn import DigitsCNN
from gen.eval.image_sets import TensorImages
from gen.eval.measuring import one_of_each
from gen.eval.reference import Reference, stack
from gen.eval.sources import collect
from tests.eval.test_evaluate import Copier


@pytest.fixture(scope="module")
def reference():
    return Reference.open("digits")


def real(images, labels):
    return Rows(TensorImages(images, labels), DigitsCNN().load(), DigitsCNN(), Extraction())


class CachedCopier(Copier):
    """One that takes a cache, of which it makes no use."""

    def sample(self, n, cond=None, *, cache=None, **how):
        return super().sample(n, cond, **how)


@pytest.fixture(scope="module")
def copier():
    return CachedCopier(*stack(Digits().open("train")))


def test_what_is_beside_the_numbers_may_fail(copier, reference, tmp_path, monkeypatch):
    def broken(*args, **how):
        raise IndexError("index 1 is out of bounds")

    for name in ("strip", "command"):
        monkeypatch.setattr(module, name, broken)
    for name in ("Throughput.measure", "CacheComparison.measure"):
        monkeypatch.setattr(f"gen.eval.measuring.{name}", broken)
    monkeypatch.setattr("gen.eval.measuring.strip", broken)
    with pytest.warns(UserWarning, match="is left out: index 1 is out of bounds") as warned:
        record = evaluate(copier, against=reference, n=20, cache={"name": "fora", "interval": 2}, out=tmp_path)
    left_out = {str(w.message).partition(" is left out")[0].removeprefix("the record's ") for w in warned}
    assert left_out == {"strip", "floor.strip", "neighbours", "command", "speed", "cache"}
    assert collect(sorted(tmp_path.glob("*.json"))) == [record] and len(record.metrics) == 8
    assert main(["leaderboard", *map(str, tmp_path.glob("*.json")), "--out", str(tmp_path / "lb.html")]) == 0


@pytest.mark.parametrize("asked", [None, ["coverage", "fid"]])
def test_a_metric_that_cannot_be_computed_does_not_take_the_others(copier, reference, asked):
    few = real(reference.test.rows("images")[:4], reference.test.labels[:4])
    small = replace(reference, test=few, floors={})
    with pytest.warns(UserWarning, match="coverage is left out: 4 reference"):
        record = evaluate(copier, against=small, n=12, seconds=0.01, metrics=asked)
    assert "fid" in [m.column.key for m in record.metrics]
    with pytest.raises(UserError, match=r"^coverage: 4 reference; it needs more than"):
        evaluate(copier, against=small, n=12, seconds=0.01, metrics=["coverage"])


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_reference_of_few_pictures(copier, reference, n):
    few = real(reference.test.rows("images")[:n], reference.test.labels[:n])
    with pytest.warns(UserWarning, match="is left out"):
        record = evaluate(copier, against=replace(reference, test=few, floors={}), n=10, seconds=0.01)
    assert {"accuracy", "nearest"} <= {m.column.key for m in record.metrics}


@pytest.mark.parametrize("counts", [(100, 100, 20), (1,) * 20, (1, 9), (3,), (2, 0, 1), (1000,)])
def test_the_strip_shows_what_there_is(counts):
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None]
    assert len(one_of_each(real(images, labels))) == 10
    assert len(one_of_each(real(images, None))) == min(10, len(labels))


def test_a_place_that_cannot_be_written_is_refused_before_the_work(copier, reference, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Copier, "sample", lambda *args, **how: pytest.fail("it was sampled"))
    with pytest.raises(UserError, match="file is a file, a folder is needed"):
        evaluate(copier, against=reference, n=10, out=tmp_path / "file")


def test_progress_is_shown(copier, reference, capsys):
    evaluate(copier, against=reference, n=20, seconds=0.01, batch_size=7, quiet=False)
    assert "copier, pictures: 20/20" in capsys.readouterr().err
    evaluate(copier, against=reference, n=20, seconds=0.01)
    assert capsys.readouterr().err == ""


class Nameless:
    """A solver that is no dataclass, and so has no spec."""

    order = 1

    def step(self, *args):
        raise AssertionError("it was sampled")


def test_a_sampler_that_no_record_can_hold_is_refused_before_the_work(copier, reference, monkeypatch):
    monkeypatch.setattr(Copier, "sample", lambda *args, **how: pytest.fail("it was sampled"))
    with pytest.raises(UserError, match="has no spec to record"):
        evaluate(copier, against=reference, n=10, solver=Nameless())


def test_a_record_that_cannot_be_written_is_returned(copier, reference, tmp_path, monkeypatch):
    def full(record, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_record", full)
    with pytest.warns(UserWarning, match="the record's file is left out: .*No space left"):
        record = evaluate(copier, against=reference, n=10, seconds=0.01, out=tmp_path)
    assert record.estimate("fid").n == 10

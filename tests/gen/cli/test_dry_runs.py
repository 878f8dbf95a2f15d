"""gen train and gen distill --dry-run: what they print, with and without data and teacher, and what they refuse."""

import json

import pytest

from gen.cli import main
from gen.training.trainer import train
from tests.gen.tiny import tiny


def call(capsys, *words):
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.slow
def test_a_recipe_without_its_data(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["gen", "train", "cifar10-dit", "--dry-run", "--batch_size", "512"])
    code, out, _ = call(capsys, "train", "cifar10-dit", "--dry-run", "--batch_size", "512")
    assert code == 0
    assert "--batch_size                         512" in out
    assert "parameters  net 32,475,660 trained, 98,304 frozen\n" in out
    assert "6.0533 GMACs for one evaluation of one sample" in out
    assert "data/cifar10-32x32.zip is not there: sizes, channels and classes are those of the recipe's model" in out
    assert "on each of 8 GPUs, 64 at a time" in out
    assert "with --gradient-checkpointing true" in out
    assert "no result of this recipe" in out
    command = "torchrun --nproc-per-node 8 -m gen train cifar10-dit --batch_size 512 --out runs/cifar10-dit"
    assert f"start       {command}\n" in out
    assert list(tmp_path.iterdir()) == []


def test_json_has_the_run_and_the_counts(capsys):
    code, out, _ = call(capsys, "train", "digits", "--dry-run", "--json", "--batch_size", "12")
    found = json.loads(out)
    assert code == 0
    assert found["run"]["batch_size"] == 12
    assert (found["gpus"], found["cost"]["micro_batch"]) == (4, 3)  # eight do not share twelve equally
    assert found["cost"]["parameters"] == {"net": [328964, 1024]}
    assert found["cost"]["memory"]["peak"] > found["cost"]["memory"]["activations"] > 0
    assert found["data"] == "Digits, x of [1, 8, 8]; it fits the model"
    assert found["published"] is None


@pytest.mark.slow
def test_a_student_of_a_run_and_a_method_with_pairs(capsys, tmp_path):
    train(tiny(steps=1, validate_every=0), tmp_path / "teacher", quiet=True)
    teacher = ("--teacher", str(tmp_path / "teacher"), "--dry-run", "--json")
    for method, roles in {"dmd2": ["fake", "net", "teacher"], "reflow": ["net"], "meanflow": ["net"]}.items():
        code, out, err = call(capsys, "distill", method, *teacher, "--steps", "7")
        assert code == 0, err
        found = json.loads(out)
        assert sorted(found["cost"]["parameters"]) == roles
        assert found["samples"] == 7 * 8
    assert [path.name for path in tmp_path.iterdir()] == ["teacher"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--json",), "--json prints a dry run: give --dry-run, too"),
        (("--dry-run", "--model.channels", "3"), "the model takes [3, 8, 8] and 10 classes, the data has [1, 8, 8]"),
        (("--dry-run", "--stepz", "3"), "unknown key 'stepz'"),
    ],
)
def test_refused_in_one_line(capsys, words, message):
    code, _, err = call(capsys, "train", "digits", *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_an_unknown_recipe_is_told_all_recipes(capsys):
    code, _, err = call(capsys, "train", "dit_xl2")
    assert code == 2
    assert "unknown name 'dit_xl2' in training.recipes or training.published" in err
    assert "dit_xl_2" in err

"""gen sample --prompt: a model of captions says what it was asked for, in every kind of file; and bad prompts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import override
from gen.data.table import Table
from gen.training.recipes.captioned_digits import captioned_digits
from gen.training.trainer import train

SEVEN, TWO = "a bold seven, turned left", "A thin two, upright"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    small = {"width": 16, "depth": 1, "heads": 2, "text_width": 8, "text_depth": 1}
    changes = {f"model.{key}": value for key, value in small.items()}
    changes |= {"steps": 3, "batch_size": 8, "validate_every": 0, "sample_every": 3, "optim.lr": 0.05}
    folder = tmp_path_factory.mktemp("prompts") / "run"
    train(override(captioned_digits(), changes), folder, quiet=True)
    return folder


def sample(folder, out, *words):
    return main(["sample", str(folder), "--steps", "2", "--quiet", "--out", str(out), *words])


def test_prompts_are_sampled_and_recorded_in_every_file(folder, tmp_path):
    pipeline = gen.load(folder)
    wanted = pipeline.sample(cond=[SEVEN, TWO], images_per_condition=2, steps=2)
    assert wanted.prompts == (SEVEN, SEVEN, TWO, TWO) and (folder / "samples/step-0000003.png").exists()
    words = ["--prompt", SEVEN, "--prompt", TWO, "--images-per-label", "2"]
    for name in ("s.npz", "s.png", "pictures"):
        assert sample(folder, tmp_path / name, *words) == 0
    stored = np.load(tmp_path / "s.npz")
    assert torch.equal(torch.from_numpy(stored["arr_0"]).permute(0, 3, 1, 2), wanted.uint8())
    assert tuple(stored["prompts"]) == wanted.prompts
    with Image.open(tmp_path / "s.png") as sheet:
        assert tuple(json.loads(sheet.text["prompts"])) == wanted.prompts
    table = Table(str(tmp_path / "pictures/metadata.jsonl"), size=16, holdout=0.25).open("train")
    assert {table.caption(i) for i in range(len(table))} == {*wanted.prompts}


def test_a_prompt_and_a_negative_prompt_matter(folder):
    pipeline = gen.load(folder)
    one, other = (pipeline.sample(cond=text, n=2, steps=2).x for text in (SEVEN, TWO))
    assert not torch.equal(one, other)
    again = pipeline.sample(cond=[SEVEN, SEVEN], steps=2)
    assert torch.equal(again.x, one)
    away = pipeline.sample(cond=[SEVEN, SEVEN], negative=TWO, steps=2)
    assert away.x.isfinite().all() and not torch.equal(away.x, one)
    nothing = pipeline.sample(cond=[SEVEN, SEVEN], negative="", steps=2)
    torch.testing.assert_close(nothing.x, one)  # no words are no caption
    free = pipeline.sample(2, guide="none", steps=2)
    assert free.prompts == () and torch.equal(free.x, pipeline.sample(cond=["", ""], guide="none", steps=2).x)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--prompt", "a bold cat"], "caption 'a bold cat': Words: unknown 'cat'"),
        (["--prompt", " ".join(["a"] * 13)], "has 13 tokens; at most length = 12"),
        (["--prompt", SEVEN, "--labels", "7"], "--labels and --prompt are given"),
        (["--labels", "7"], "takes captions, in words: 7 is none; give --prompt TEXT"),
        (["--prompt", SEVEN, "--prompt", "a bold cat", "-n", "3"], "unknown 'cat'"),
        (["--prompt", SEVEN, "--prompt", TWO, "-n", "3"], "2 captions for 3 conditions"),
        (["--prompt", SEVEN, "--negative", "a dog"], "unknown 'dog'"),
        (["--prompt", SEVEN, "--text-encoder", "x"], "trained with an encoder of its own"),
        ([], "needs a condition, such as labels or captions"),
    ],
)
def test_a_bad_prompt_is_one_line(folder, tmp_path, capsys, words, said):
    assert sample(folder, tmp_path / "s.npz", *words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "s.npz").exists()


def test_bad_prompts_from_python(folder):
    pipeline = gen.load(folder)
    for cond, said in (([], "at least one condition"), (7, "in words"), ([SEVEN, 7], "in words")):
        with pytest.raises(UserError, match=said):
            pipeline.sample(cond=cond)


def test_a_model_and_data_that_do_not_agree_on_captions_are_refused(tmp_path):
    run = captioned_digits()
    for changes, said in (
        ({"model": "dit"}, "reads none: take pixart"),
        ({"model.text_vocab": 99}, "set model.text_vocab"),
        ({"model.text_length": 4}, "set model.text_vocab"),
    ):
        with pytest.raises(UserError, match=said):
            train(override(run, {**changes, "validate_every": 0}), tmp_path / "run", quiet=True)

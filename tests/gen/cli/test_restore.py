"""gen restore: held-out pictures measured here, and measured pictures of one's own."""

import pytest
from PIL import Image

from gen.cli import main
from gen.config.spec import override
from gen.training.recipes.digits import digits
from gen.training.trainer import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    changes = {"model.width": 16, "model.depth": 1, "model.heads": 2, "steps": 2, "batch_size": 8}
    folder = tmp_path_factory.mktemp("restore") / "run"
    train(override(digits(), changes | {"sample_every": 0, "validate_every": 0, "ema": ()}), folder, quiet=True)
    return folder


def call(capsys, *words):
    code = main(["restore", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_held_out_pictures_are_measured_and_compared(run, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    how = ("--operator", "inpaint", "--operator.box", "[2, 6, 2, 6]", "--noise", 0.1, "--method.steps", 3)
    code, said, _ = call(capsys, run, *how, "-n", 2, "--each", 2, "--out", out)
    assert code == 0 and "3 network evaluations per sample" in said and "PSNR of the mean of 2" in said
    with Image.open(out) as sheet:
        size = sheet.size
    assert size == (5 * (8 * 8 + 1) - 1, 2 * (8 * 8 + 1) - 1)  # measured, two, deviation, truth
    code, said, _ = call(capsys, run, "--operator", "pool", "--method", "ddnm", "--method.steps", 3, "-n", 2, "--out",
                         tmp_path / "folder")  # fmt: skip
    assert code == 0 and "distance to the measurement 0.0000" in said
    assert len(list((tmp_path / "folder").glob("*.png"))) == 2


def test_pictures_of_ones_own_are_the_measurement(run, tmp_path, capsys):
    (tmp_path / "small").mkdir()
    Image.new("L", (4, 4), 200).save(tmp_path / "small/a.png")
    how = (run, "--operator", "pool", "--method", "ddnm", "--method.steps", 3, "--input", tmp_path / "small")
    code, said, err = call(capsys, *how, "--out", tmp_path / "made")
    assert code == 0, err
    assert "PSNR" not in said and len(list((tmp_path / "made").glob("*.png"))) == 1
    for words, message in (
        (("--operator", "pole"), "Did you mean 'pool'"),
        (("--operator", "pool", "--method", "ddnm", "--noise", 0.1), "takes measurements without noise"),
        (("--operator", "pool", "--out", tmp_path / "made"), "give a new folder, or a file.png"),
    ):
        code, _, err = call(capsys, run, *words)
        assert code == 2 and message in err and err.count("\n") == 1

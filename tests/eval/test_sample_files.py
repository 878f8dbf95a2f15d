"""Samples in a file: of any number, in parts, after a kill, the same bytes; and what gen sample adds to a loop."""

import numpy as np
import pytest
import torch
from PIL import Image

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.config.images import to_uint8
from gen.data.folder import Folder
from gen.eval.drawn import Decoder
from gen.eval.image_sets import open_images
from gen.eval.sample_files import write_npz
from gen.samplers.guides.cfg import CFG
from gen.training.trainer import train
from tests.gen.tiny import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    where = tmp_path_factory.mktemp("sample") / "run"
    train(tiny(steps=2, validate_every=0, optim={"name": "adamw", "lr": 0.3}), where, quiet=True)
    return where


def words(run, out, *more):
    return [str(word) for word in ("sample", run, "--quiet", "--batch-size", 8, "-n", 30, "--out", out, *more)]


@pytest.fixture(scope="module")
def undisturbed(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "s.npz"
    assert main(words(run, out)) == 0
    assert [file.name for file in out.parent.iterdir()] == ["s.npz"]
    return out


def test_a_file_holds_what_the_pipeline_draws_and_the_labels(run, undisturbed) -> None:
    with np.load(undisturbed) as file:
        assert file.files == ["arr_0", "arr_1"]
        pictures, labels = (torch.from_numpy(file[name]) for name in file.files)
    whole = gen.load(run).sample(30, batch_size=8)
    assert torch.equal(pictures.permute(0, 3, 1, 2), whole.uint8()) and torch.equal(labels, whole.cond["y"])


def test_numpy_reads_what_is_written_little_by_little(tmp_path) -> None:
    images = torch.randint(0, 256, (2345, 3, 2, 4), dtype=torch.uint8)
    write_npz(tmp_path / "a.npz", images, None)
    with np.load(tmp_path / "a.npz") as file:
        assert file.files == ["arr_0"] and np.array_equal(file["arr_0"], images.permute(0, 2, 3, 1).numpy())


def stopping(monkeypatch, after):
    """Let a command end after so many chunks, as a kill would."""
    whole, seen = Decoder.sample, []

    def sample(self, n, **how):
        seen.append(how["start"])
        if len(seen) > after:
            raise KeyboardInterrupt
        return whole(self, n, **how)

    monkeypatch.setattr(Decoder, "sample", sample)
    return seen


def test_a_command_goes_on_where_it_was_stopped(run, undisturbed, tmp_path, monkeypatch) -> None:
    out = tmp_path / "s.npz"
    for after in (1, 2):
        with monkeypatch.context() as patch:
            stopping(patch, after)
            assert main(words(run, out)) != 0 and not out.exists()
    with monkeypatch.context() as patch:
        seen = stopping(patch, 9)
        assert main(words(run, out)) == 0
    assert seen == [24] and out.read_bytes() == undisturbed.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["s.npz"]


def test_chunks_that_a_kill_left_beside_their_whole_file_are_removed_by_the_next_command(run, tmp_path) -> None:
    whole, half = tmp_path / ".a.npz-chunks", tmp_path / ".b.npz-chunks"
    for folder in (whole, half):
        folder.mkdir()
        (folder / "images.rows").write_bytes(b"pixels")
    (tmp_path / "a.npz").write_bytes(b"all")
    assert main(words(run, tmp_path / "s.npz")) == 0
    assert not whole.exists() and half.exists()


@pytest.mark.parametrize("change", [["--seed", 1], ["--steps", 3], ["--labels", 4], ["--guidance-scale", 2]], ids=str)
def test_chunks_of_other_samples_are_not_taken(run, undisturbed, tmp_path, monkeypatch, change) -> None:
    out = tmp_path / "s.npz"
    with monkeypatch.context() as patch:
        stopping(patch, 2)
        main(words(run, out, *change))
    assert main(words(run, out)) == 0 and out.read_bytes() == undisturbed.read_bytes()


def test_parts_in_any_order_make_the_file(run, undisturbed, tmp_path, capsys) -> None:
    out = tmp_path / "s.npz"
    for k, there in ((3, 14), (1, 22)):
        assert main(words(run, out, "--part", f"{k}/3")) == 0
        assert f"{there} of 30 samples are there" in capsys.readouterr().out and not out.exists()
    assert main(words(run, out, "--part", "2/3")) == 0 and out.read_bytes() == undisturbed.read_bytes()


def test_a_folder_holds_a_png_for_each_and_the_labels_that_training_and_evaluation_read(run, undisturbed, tmp_path):
    assert main(words(run, tmp_path / "pngs")) == 0
    files = sorted((tmp_path / "pngs").iterdir())
    assert [file.name for file in files] == [*(f"{i:06d}.png" for i in range(30)), "dataset.json"]
    with np.load(undisturbed) as whole, Image.open(files[17]) as picture:
        assert np.array_equal(np.array(picture), whole["arr_0"][17, :, :, 0])
        labels = whole["arr_1"].tolist()
    data = Folder(str(tmp_path / "pngs"), holdout=0.0)
    assert data.classes == 10 and [int(item["y"]) for item in data.open("train")] == labels
    assert open_images(tmp_path / "pngs").labels.tolist() == labels
    at_once = [*words(run, tmp_path / "again"), "--trajectory", str(tmp_path / "steps")]
    assert main(at_once) == 0
    assert all(file.read_bytes() == (tmp_path / "again" / file.name).read_bytes() for file in files)


def test_a_sheet_has_no_parts(run, tmp_path, capsys) -> None:
    assert main(words(run, tmp_path / "s.png", "--part", "1/2")) == 2
    assert "--part needs --out file.npz or a folder" in capsys.readouterr().err
    assert main(words(run, tmp_path / "s.npz", "--part", "0/2")) == 2
    assert "--part '0/2': expected k/n, 1/4 to 4/4 for four parts" in capsys.readouterr().err


def test_what_is_watched_is_the_loop_of_the_first_samples(run, tmp_path) -> None:
    strip = tmp_path / "strip.png"
    assert main(words(run, tmp_path / "s.npz", "--steps", 3, "--watch", strip)) == 0
    states = gen.load(run).sample(8, steps=3, trajectory=True).trajectory[:, 1:]  # [8, 3, 1, 8, 8]
    with Image.open(strip) as picture:
        assert picture.size == (3 * 33 - 1, 8 * 33 - 1)
        shown = torch.from_numpy(np.array(picture)[33 * 5 : 33 * 5 + 32 : 4, 33 : 33 + 32 : 4])
    assert torch.equal(shown, to_uint8(states[5, 1, 0]))


def test_a_guide_moves_away_from_the_negative_condition(run) -> None:
    pipeline = gen.load(run)
    f, guide = pipeline.denoiser, CFG(scale=2.5)
    found = pipeline.sample(3, [1, 2, 3], guide=guide, negative=[4, 5, 6], steps=1, solver="euler")
    unit = pipeline.sample(3, [1, 2, 3], guide=guide, steps=1, solver="euler", trajectory=True).trajectory[:, 0]
    t = pipeline.sampler.grid.times(f.path, 1)[0]
    c, u = (f(unit, t, {"y": torch.tensor(y)}).x0 for y in ([1, 2, 3], [4, 5, 6]))
    torch.testing.assert_close(found.x, u + 2.5 * (c - u))
    same = pipeline.sample(3, [1, 2, 3], guide=guide, negative={"y": torch.full((3,), 10)}, steps=1)
    assert torch.equal(same.x, pipeline.sample(3, [1, 2, 3], guide=guide, steps=1).x)  # 10 is "no class"


@pytest.mark.parametrize("guide", ["none", CFG(scale=1.0)], ids=["none", "scale 1"])
def test_a_negative_condition_that_changes_nothing_is_refused(run, guide) -> None:
    with pytest.raises(UserError, match="no prediction is made without the condition"):
        gen.load(run).sample(2, guide=guide, negative=3)


def test_several_images_of_each_condition(run) -> None:
    pipeline = gen.load(run)
    found = pipeline.sample(cond=[7, 1], images_per_condition=3)
    assert found.cond["y"].tolist() == [7, 7, 7, 1, 1, 1]
    assert torch.equal(found.x, pipeline.sample(6, [7, 7, 7, 1, 1, 1]).x)
    assert pipeline.sample(4, images_per_condition=2, start=2).cond["y"].tolist() == [1, 1, 2, 2]
    assert len(pipeline.sample(cond=[1, 2]).x) == 2 and len(pipeline.sample().x) == 1
    with pytest.raises(UserError, match="n = 5 and images_per_condition = 2: n must be a multiple"):
        pipeline.sample(5, images_per_condition=2)
    with pytest.raises(UserError, match="start = 1 and images_per_condition = 2"):
        pipeline.sample(4, images_per_condition=2, start=1)

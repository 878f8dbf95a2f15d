"""Pictures in folders: read as viewers show them, or refused by name; nothing is left out without a count."""

import json
import os
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gen.cli import main
from gen.config.errors import UserError
from gen.config.images import to_uint8
from gen.data.folder import Folder
from gen.training.stream import ShuffledStream, iterate_steps
from gen.training.trainer import train
from tests.gen.tiny import tiny


def read(root, **fields):
    """The one picture of a folder as uint8 [H, W, C]."""
    data = Folder(str(root), **{"size": 8, "channels": 3, "holdout": 0.0, **fields}).open("train")
    assert len(data) == 1
    return to_uint8(data[0]["x"]).permute(1, 2, 0).numpy()


def refusal(root, **fields):
    with pytest.raises(UserError) as error:
        read(root, **fields)
    assert "\n" not in str(error.value)
    return str(error.value)


def png_bytes(width, height, depth, colour, rows, extra=b""):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# --- as viewers show them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_by_its_exif_orientation(orientation, suffix, tmp_path):
    shown = np.zeros((8, 8), np.uint8)
    shown[:4, :4], shown[:4, 4:], shown[4:, :4] = 255, 170, 85
    # EXIF 2.3, tag 0x0112: where row 0 and column 0 of the stored pixels are in the shown picture
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.T,
        6: np.rot90(shown),
        7: shown[::-1, ::-1].T,
        8: np.rot90(shown, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.ascontiguousarray(stored)).convert("RGB")
    picture.save(tmp_path / f"a.{suffix}", exif=exif, quality=100)
    assert abs(read(tmp_path, channels=1)[..., 0].astype(int) - shown).max() < 24


def test_orientation_6_puts_the_left_half_on_top(tmp_path):
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    image = read(tmp_path, size=16, channels=1)[..., 0]
    assert image[:7].min() > 240 and image[9:].max() < 15


def test_damaged_exif_data_turn_nothing(tmp_path):
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "a.png", exif=b"Exif\0\0not a TIFF header")
    assert (read(tmp_path) == 9).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "tRNS"])
def test_transparent_pixels_show_the_background(kind, channels, tmp_path):
    path = tmp_path / "a.png"
    if kind == "RGBA":
        Image.new("RGBA", (8, 8), (179, 187, 50, 0)).save(path)
    elif kind == "LA":
        Image.new("LA", (8, 8), (90, 0)).save(path)
    elif kind == "palette":
        Image.new("P", (8, 8)).save(path, transparency=b"\0\x80")
    else:
        Image.new("RGB", (8, 8), (179, 187, 50)).save(path, transparency=(179, 187, 50))
    assert (read(tmp_path, channels=channels) == 255).all()
    assert (read(tmp_path, channels=channels, background=40) == 40).all()


def test_alpha_mixes_and_opaque_pictures_keep_their_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    pixels[:4, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read(tmp_path, background=100).astype(float)
    share = pixels[..., 3:] / 255
    assert (image[:4] == pixels[:4, :, :3]).all()
    assert abs(image - (share * pixels[..., :3] + (1 - share) * 100)).max() <= 1


def test_the_background_is_part_of_the_data_and_is_checked(tmp_path):
    Image.new("RGBA", (8, 8)).save(tmp_path / "a.png")
    prints = {Folder(str(tmp_path), 8, holdout=0.0, background=b).open("train").fingerprint for b in (0, 255)}
    assert len(prints) == 2
    assert "Folder: background = 256; it must be in [0, 255]" in refusal(tmp_path, background=256)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_more_than_8_bits_a_channel_are_refused(colour, channels, tmp_path):
    rows = (b"\0" + b"\x12\x34" * channels * 8) * 8
    (tmp_path / "deep.png").write_bytes(png_bytes(8, 8, 16, colour, rows))
    assert "deep.png has more than 8 bits a channel" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_animated_pictures_are_refused(suffix, tmp_path):
    frames = [Image.new("RGB", (8, 8), (v, v, v)) for v in (0, 255)]
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:])
    assert f"moving.{suffix} is animated" in refusal(tmp_path)


# --- hostile files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("kind", ["EPS", "GIF", "TIFF", "PDF", "ICO"])
def test_only_the_decoders_of_the_promised_kinds_run(kind, suffix, tmp_path, monkeypatch):
    def run(*args, **kwargs):
        raise AssertionError(f"a process was started: {args}")

    monkeypatch.setattr("subprocess.Popen.__init__", run)
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{suffix}", kind)
    assert f"a.{suffix} cannot be decoded (no picture of a known format)" in refusal(tmp_path)


@pytest.mark.parametrize("shape", [(1, 100_000), (100_000, 1)])
def test_a_picture_that_scaling_makes_huge_is_refused_before_memory_is_taken(shape, tmp_path):
    width, height = shape
    (tmp_path / "long.png").write_bytes(png_bytes(width, height, 8, 0, bytes((width + 1) * height)))
    line = refusal(tmp_path, size=256)
    assert "long.png is 100000 pixels long and 1 wide: scaled to 256 it has more than 89478485 pixels" in line
    assert read(tmp_path, size=8).shape == (8, 8, 3)


# --- nothing is left out without a count ----------------------------------------------------------------------------


def grey(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path, "PNG")


def test_files_of_other_kinds_and_hidden_ones_are_counted(tmp_path):
    grey(tmp_path / "cat" / "a.png")
    for other in ("readme.txt", "cat/b.gif", "cat/deep/c.tif", ".DS_Store", "cat/.hidden.png", ".git/d.png"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"left out 3 files of other kinds and 3 hidden files, such as '.DS_Store'$"):
        read(tmp_path)


def test_edms_list_gives_the_labels_whatever_the_folders(tmp_path):
    for name in ("00000/a.png", "00000/b.png", "c.png"):
        grey(tmp_path / name)
    listed = {"labels": [["00000/a.png", 2], ["00000/b.png", 0], ["c.png", 2]]}
    (tmp_path / "dataset.json").write_text(json.dumps(listed))
    data = Folder(str(tmp_path), 8, holdout=0.0)
    with pytest.warns(UserWarning, match="nothing to train the labels 1"):
        assert [int(item["y"]) for item in data.open("train")] == [2, 0, 2] and data.classes == 3
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": listed["labels"][:2]}))
    assert "has no label of c.png" in refusal(tmp_path)


def test_linked_files_and_folders_are_read_to_any_depth(tmp_path):
    for i, file in enumerate(("a.png", "deep/b.png", "deep/deeper/c.png")):
        grey(tmp_path / "store" / file, i)
    grey(tmp_path / "data" / "cat" / "z.png", 9)
    (tmp_path / "data" / "cat" / "more").symlink_to(tmp_path / "store")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "store" / "deep")
    (tmp_path / "data" / "cat" / "one.png").symlink_to(tmp_path / "store" / "a.png")
    data = Folder(str(tmp_path / "data"), 8, holdout=0.0).open("train")
    files = ["more/a.png", "more/deep/b.png", "more/deep/deeper/c.png", "one.png", "z.png"]
    assert [data.where(i).removeprefix(f"{tmp_path}/data/") for i in range(len(data))] == [
        *(f"cat/{file}" for file in files),
        "dog/b.png",
        "dog/deeper/c.png",
    ]
    assert data.y.tolist() == [0] * 5 + [1] * 2


@pytest.mark.parametrize("skip_corrupt", [False, True])
def test_what_cannot_be_followed_is_named(skip_corrupt, tmp_path):
    def line():
        return refusal(tmp_path, skip_corrupt=skip_corrupt)

    grey(tmp_path / "cat" / "a.png")
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert "gone.png is a broken link" in line()
    (tmp_path / "cat" / "gone.png").unlink()
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    assert "pipe.png is no regular file" in line()
    (tmp_path / "cat" / "pipe.png").unlink()
    (tmp_path / "cat" / "loop").symlink_to(tmp_path)
    assert "loop' links to a folder that it lies in" in line()


@pytest.mark.parametrize("name", [b"\xff\xfe", b"two\nlines", b"\x1b[31mred"])
@pytest.mark.parametrize("kind", ["file", "class"])
def test_names_that_cannot_be_written_are_refused(kind, name, tmp_path):
    text = os.fsdecode(name)
    path = tmp_path / text / "a.png" if kind == "class" else tmp_path / "cat" / f"{text}.png"
    grey(path)
    line = refusal(tmp_path)
    assert ascii(str(path)) in line and "rename" in line and line.isprintable()


def test_names_of_other_scripts_are_kept(tmp_path):
    for name in ("é.png", "日本\u3000語.png", "at 3.04\u202fPM.png", "👩\u200d🎨.png"):
        grey(tmp_path / name)
    assert len(Folder(str(tmp_path), 8, holdout=0.0).open("train")) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_picture_is_one_line_with_workers_too(workers, tmp_path):
    path = tmp_path / "bad.png"
    Image.effect_noise((64, 64), 100).save(path)
    path.write_bytes(path.read_bytes()[:2000])  # the header is good
    data = Folder(str(tmp_path), 8, holdout=0.0).open("train")
    run = replace(tiny(), workers=workers)
    with pytest.raises(UserError) as error:
        next(iterate_steps(ShuffledStream(data, 0), run, 0, 2, 0, 2))
    line = str(error.value)
    assert line.startswith(f"{path} cannot be decoded (") and line.endswith("leaves such pictures out")
    assert "\n" not in line


# --- and what is no picture is not drawn as one ---------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 4])
def test_latents_are_refused_before_sampling_for_every_output(channels, tmp_path, capsys, monkeypatch):
    save_file({"latents": torch.randn(20, channels, 8, 8), "labels": torch.arange(20) % 10}, tmp_path / "a.safetensors")
    shape = {"size": 8, "patch": 4, "channels": channels, "classes": 10}
    model = {"name": "dit", "width": 16, "depth": 1, "heads": 2, **shape}
    data = {"name": "latents", "path": str(tmp_path / "a.safetensors")}
    train(tiny(model=model, data=data, steps=1), tmp_path / "run", quiet=True)
    monkeypatch.setattr("gen.pipeline.integrate", lambda *a, **k: pytest.fail("sampled first"))
    for out in ("s.npz", "s.png", "folder"):
        assert main(["sample", str(tmp_path / "run"), "-n", "2", "--out", str(tmp_path / out)]) == 2
        assert "no pictures: an autoencoder decodes latents" in capsys.readouterr().err
        assert not (tmp_path / out).exists()

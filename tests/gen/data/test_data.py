import hashlib
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from gen.config.errors import UserError
from gen.config.images import to_uint8
from gen.config.spec import build, names, spec_of
from gen.data.digits import Digits
from gen.data.folder import Folder
from gen.data.latents import Latents
from gen.data.lib.crops import fit
from gen.data.lib.tensors import split_indices
from gen.data.npz import Npz
from gen.data.photographs import Photographs
from gen.data.text import Text


def png(path, width=12, height=10, seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "L": 1, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    Image.fromarray(pixels if channels > 1 else pixels[..., 0]).save(path)
    return pixels


@pytest.fixture
def pets(tmp_path):
    for i in range(10):
        png(tmp_path / "pets" / "cat" / f"{i}.png", seed=i)
        png(tmp_path / "pets" / "dog" / f"{i}.png", seed=10 + i)
    return tmp_path / "pets"


# --- every source ---------------------------------------------------------------------------------------------------


def sources(root):
    for i in range(10):
        png(root / "pets" / "ab"[i % 2] / f"{i}.png", seed=i)
    images = np.random.default_rng(0).integers(0, 256, (20, 6, 4, 3), dtype=np.uint8)
    np.savez(root / "a.npz", arr_0=images, arr_1=np.arange(20) % 4)
    save_file({"latents": torch.randn(20, 4, 2, 2), "labels": torch.arange(20) % 5}, root / "a.safetensors")
    return {
        "digits": Digits(),
        "folder": Folder(str(root / "pets"), size=8),
        "npz": Npz(str(root / "a.npz")),
        "latents": Latents(str(root / "a.safetensors")),
        "photographs": Photographs(),
    }


@pytest.mark.parametrize("name", ["digits", "folder", "npz", "latents", "photographs"])
def test_every_source_keeps_the_contract(name, tmp_path):
    assert name in names("data")
    source = sources(tmp_path)[name]
    assert build("data", spec_of(source)) == source
    train, test = source.open("train"), source.open("test")
    for data in (train, test):
        item = data[len(data) - 1]
        assert item["x"].shape == source.shape and item["x"].dtype == torch.float32
        assert item["y"].shape == () and item["y"].dtype == torch.int64 and 0 <= item["y"] < source.classes
        assert len(data.fingerprint) == 64
        with pytest.raises(IndexError):
            data[len(data)]
        copy = pickle.loads(pickle.dumps(data))
        assert torch.equal(copy[0]["x"], data[0]["x"])
    assert train.fingerprint != test.fingerprint
    assert source.open("train").fingerprint == train.fingerprint
    rows = {data[i]["x"].numpy().tobytes() for data in (train, test) for i in range(len(data))}
    assert len(rows) >= 0.99 * (len(train) + len(test))  # the splits share nothing
    batch = next(iter(DataLoader(train, 3)))
    assert batch["x"].shape == (3, *source.shape) and batch["y"].shape == (3,)
    with pytest.raises(UserError, match=r"unknown split 'val'. Allowed: train, test."):
        source.open("val")


SUMMED = {
    "latents": ("l", lambda root: Latents(str(root / "l"))),
    "pictures": ("pets", lambda root: Folder(str(root / "pets"), size=8)),
    "npz": ("n", lambda root: Npz(str(root / "n/a.npz"))),
    "text": ("t", lambda root: Text(str(root / "t"), length=8)),
}


def flip(path, bit=3):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("kind", SUMMED)
def test_one_bit_that_changed_is_noticed_where_there_are_checksums(kind, tmp_path):
    """As `sha256sum` writes them, which no format here has of its own; the one line names the file."""
    sources(tmp_path)
    for folder in "lnt":
        (tmp_path / folder).mkdir()
    for k in range(2):
        latents = {"latents": torch.randn(10, 4, 2, 2), "labels": torch.arange(10) % 5}
        save_file(latents, tmp_path / "l" / f"{k}.safetensors")
        (tmp_path / "t" / f"{k}.txt").write_text(f"{k} once upon a time there was a text" * 9)
    (tmp_path / "a.npz").rename(tmp_path / "n/a.npz")
    name, source = SUMMED[kind]
    folder = tmp_path / name
    files = sorted(file for file in folder.rglob("*.*"))
    print_of = source(tmp_path).open("train").fingerprint
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  ./{file.relative_to(folder)}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(sums))
    assert source(tmp_path).open("train").fingerprint == print_of

    def refusal():
        with pytest.raises(UserError) as caught:
            source(tmp_path).open("train")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    flip(files[-1])
    assert refusal() == f"{files[-1]} is damaged or was changed: its sha256 is not the one in {folder}/SHA256SUMS"
    flip(files[-1])
    if kind != "npz":
        (folder / "SHA256SUMS").write_text("".join(sums[:-1]))
        assert f"{files[-1]} is not listed in" in refusal()
        files[-1].unlink()
        (folder / "SHA256SUMS").write_text("".join(sums))
        assert f"{files[-1]} is not there, and" in refusal()
    (folder / "SHA256SUMS").write_text("oh")
    assert "SHA256SUMS, line 1: expected a sha256" in refusal()


def test_split_is_exact_stratified_and_pinned():
    labels = [i % 3 for i in range(100)]
    test = split_indices("test", 100, 30, labels)
    train = split_indices("train", 100, 30, labels)
    assert sorted(test + train) == list(range(100))
    assert len(test) == 30
    assert all(abs(sum(labels[i] == k for i in test) - 10) <= 1 for k in range(3))
    assert split_indices("test", 10, 3) == [0, 1, 9]
    assert split_indices("test", 10, 0) == []


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_are_always_the_same():
    train, test = Digits().open("train"), Digits().open("test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.fingerprint == "36dbc64357593fe00c52295418b07d076c8b98535b9920d3cbb54287540fc149"
    assert test.fingerprint == "c02a65abecdb74ae79d8c20aa69fea9ea8a1231c64598fa2aa8feafdbd6bd10e"
    assert test.y.bincount().tolist() == [35, 37, 35, 37, 36, 36, 37, 36, 34, 37]


def test_no_pixel_of_a_photograph_is_in_crops_of_both_splits(tmp_path):
    at = np.indices((200, 250)).transpose(1, 2, 0)  # every pixel's colour says where it is
    Image.fromarray(np.concatenate([at, at[..., :1] * 0], 2).astype(np.uint8)).save(tmp_path / "a.png")
    source = Photographs(size=8, side=200, tile=20, stride=3)
    train, test = ({tuple(p) for p in source._crops(tmp_path / "a.png", s).permute(0, 2, 3, 1).reshape(-1, 3).tolist()}
                   for s in ("train", "test"))  # fmt: skip
    assert not train & test and len(test) > 0.15 * 200 * 250 and len(train) > 0.7 * 200 * 250
    with pytest.raises(UserError, match="Photographs: tile = 20; allowed: from size = 32 to side = 192"):
        Photographs(tile=20)


def test_digits_are_scikit_learns_pixels_in_order():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    rows = split_indices("test", 1797, 360, labels.tolist())
    test = Digits().open("test")
    x = torch.stack([test[i]["x"] for i in range(360)])
    assert torch.equal((x.double() + 1) * 8, torch.from_numpy(pixels[rows]).reshape(360, 1, 8, 8))
    assert test.y.tolist() == labels[rows].tolist()
    assert x.min() == -1 and x.max() == 1


# --- folder ---------------------------------------------------------------------------------------------------------


def test_classes_are_the_subfolders_in_order_of_name(pets):
    (pets / "readme.txt").write_text("not a picture")
    (pets / "cat" / ".hidden.png").write_text("nor this")
    source = Folder(str(pets), size=8, holdout=0.2)
    with pytest.warns(UserWarning, match="left out 1 file of another kind and 1 hidden file"):
        train, test = source.open("train"), source.open("test")
    assert (source.classes, len(train), len(test)) == (2, 16, 4)
    assert test.y.bincount().tolist() == [2, 2]
    assert all(("/dog/" in train.where(i)) == bool(y) for i, y in enumerate(train.y))


def test_flat_folder_has_no_labels(tmp_path):
    for i, suffix in enumerate(("png", "JPG", "jpeg", "webp", "bmp")):
        png(tmp_path / f"{i}.{suffix}", seed=i)
    source = Folder(str(tmp_path), size=8)
    assert source.classes == 0
    assert len(source.open("train")) == 4 and set(source.open("train")[0]) == {"x"}


def test_a_picture_of_the_right_size_comes_through_unchanged(tmp_path):
    pixels = png(tmp_path / "0.png", 8, 8)
    png(tmp_path / "1.png", 8, 8)
    both = [Folder(str(tmp_path), size=8, holdout=0.5).open(split)[0]["x"] for split in ("train", "test")]
    original = torch.from_numpy(pixels).permute(2, 0, 1)
    assert any(torch.equal(to_uint8(x), original) for x in both)
    assert (
        max(float((x - (original / 127.5 - 1)).abs().max()) for x in both if torch.equal(to_uint8(x), original)) < 1e-6
    )


@pytest.mark.parametrize(("width", "height"), [(8, 8), (9, 31), (64, 33), (7, 5), (100, 8)])
def test_fit_scales_the_shorter_side_and_keeps_the_middle(width, height):
    ramp = np.tile(np.linspace(0, 255, width, dtype=np.float32), (height, 1)).astype(np.uint8)
    image = np.array(fit(Image.fromarray(ramp), (8, 8)))
    assert image.shape == (8, 8)
    slope = 255 / (width - 1) * min(width, height) / 8  # grey levels from one pixel to the next
    middle = image[4].astype(float)
    assert abs(middle.mean() - 127.5) < 0.6 * slope + 2  # cut to whole pixels: at most half a pixel off the middle
    assert abs((middle[5] - middle[2]) - 3 * slope) < 3


def test_grey_and_colour(tmp_path):
    png(tmp_path / "0.png", mode="L")
    png(tmp_path / "1.png", mode="RGBA")
    Image.new("P", (8, 8)).save(tmp_path / "2.png", transparency=b"\0\x80")
    for channels in (1, 3):
        source = Folder(str(tmp_path), size=8, channels=channels)
        items = [*source.open("train"), *source.open("test")]
        assert [item["x"].shape for item in items] == [(channels, 8, 8)] * 3


def test_flip_adds_the_mirrored_pictures_to_train_only(pets):
    plain, flipped = Folder(str(pets), size=8), Folder(str(pets), size=8, flip="double")
    train, n = flipped.open("train"), len(plain.open("train"))
    assert len(train) == 2 * n and len(flipped.open("test")) == len(plain.open("test"))
    assert torch.equal(train[n + 3]["x"], train[3]["x"].flip(2)) and train[n + 3]["y"] == train[3]["y"]
    assert torch.equal(train[3]["x"], plain.open("train")[3]["x"])


def test_fingerprint_follows_names_and_bytes(pets):
    def fingerprint():
        return Folder(str(pets), size=8).open("train").fingerprint

    before = fingerprint()
    Path(Folder(str(pets), size=8).open("train").where(0)).touch()
    assert fingerprint() == before
    moved = pets / "cat" / "00.png"
    (pets / "cat" / "0.png").rename(moved)
    renamed = fingerprint()
    moved.write_bytes(moved.read_bytes()[:-1] + b"x")
    for path in sorted(pets.rglob("*.png")):
        path.write_bytes(path.read_bytes() + b"\0")
    assert len({before, renamed, fingerprint()}) == 3


def test_a_second_folder_can_be_the_test_split(pets, tmp_path):
    for name in ("cat", "dog"):
        png(tmp_path / "more" / name / "x.png", seed=99)
    source = Folder(str(pets), size=8, test_path=str(tmp_path / "more"))
    assert (len(source.open("train")), len(source.open("test"))) == (20, 2)
    (tmp_path / "more" / "dog").rename(tmp_path / "more" / "fox")
    with pytest.raises(UserError, match=r"other classes than .*: without dog, with fox more"):
        Folder(str(pets), size=8, test_path=str(tmp_path / "more")).open("train")


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "bit flip"])
def test_a_corrupt_picture_is_named_and_skipped_only_on_request(kind, pets):
    bad = pets / "dog" / "3.png"
    data = bytearray(bad.read_bytes())
    data[len(data) // 2] ^= 0x10
    broken = {"truncated": bytes(data[: len(data) // 2]), "text": b"<html>", "empty": b"", "bit flip": bytes(data)}
    bad.write_bytes(broken[kind])
    with pytest.raises(UserError) as error:
        source = Folder(str(pets), size=8)
        for split in ("train", "test"):
            list(source.open(split))
    assert str(bad) in str(error.value) and "skip_corrupt" in str(error.value) and "\n" not in str(error.value)
    with pytest.warns(UserWarning, match=r"left out 1 of 20 pictures: dog/3.png"):
        data = Folder(str(pets), size=8, skip_corrupt=True).open("train")
    assert data.skipped == ["dog/3.png"]
    assert all(torch.isfinite(item["x"]).all() for item in data)


def bomb(width=20_000, height=20_000):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def open_folder(root, **fields):
    return Folder(str(root), **{"size": 8, **fields}).open("train")


def wrong_folders():
    def only_hidden(root):
        png(root / "cat" / ".a.png")

    def mixed(root):
        png(root / "a.png")
        png(root / "cat" / "a.png")

    def one_class_empty(root):
        png(root / "cat" / "a.png")
        (root / "dog").mkdir()

    def sixteen_bits(root):
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(root / "deep.png")

    def nothing(root):
        pass

    def one(root):
        png(root / "a.png")

    return {
        "missing": (nothing, {"path": "nowhere"}, "nowhere is not there"),
        "a file": (one, {"path": "a.png"}, "a.png is a file; give a folder"),
        "empty": (nothing, {}, "holds no pictures (.bmp, .jpeg"),
        "hidden only": (only_hidden, {}, "holds no pictures"),
        "mixed": (mixed, {}, "1 pictures beside class folders"),
        "an empty class": (one_class_empty, {}, "dog holds no pictures"),
        "bomb": (lambda root: (root / "bomb.png").write_bytes(bomb()), {}, "bomb.png has more than 89478485 pixels"),
        "small bomb": (
            lambda root: (root / "bomb.png").write_bytes(bomb(10_000)),
            {"skip_corrupt": True},
            "bomb.png has more than 89478485 pixels",
        ),
        "16 bits": (sixteen_bits, {}, "deep.png has more than 8 bits a channel"),
        "one picture": (one, {}, "all of its 1 items are held out"),
        "holdout": (one, {"holdout": 1.0}, "Folder: holdout = 1.0"),
        "size": (one, {"size": 0}, "Folder: size = 0"),
        "channels": (one, {"channels": 4}, "Folder: channels = 4"),
        "all corrupt": (
            lambda root: (root / "a.png").write_bytes(b"x"),
            {"skip_corrupt": True},
            "none of its 1 pictures",
        ),
    }


@pytest.mark.parametrize("case", wrong_folders())
def test_wrong_folders_fail_in_one_line(case, tmp_path):
    make, fields, words = wrong_folders()[case]
    make(tmp_path)
    path = tmp_path / fields.pop("path", "")
    with pytest.raises(UserError) as error:
        open_folder(path, **fields)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_nothing_held_out_is_no_test_split(pets):
    source = Folder(str(pets), size=8, holdout=0.0)
    assert len(source.open("train")) == 20
    with pytest.raises(UserError, match="nothing is held out"):
        source.open("test")


def test_a_picture_that_vanishes_is_named(pets):
    data = open_folder(pets)
    Path(data.where(0)).unlink()
    with pytest.raises(UserError, match=r"png cannot be read: No such file"):
        data[0]


@pytest.mark.parametrize("size", ["6x8", "[6, 8]", (6, 8), [6, 8]])
def test_pictures_may_be_higher_than_wide(size, pets):
    """Scaled until they cover the size, and the middle of that."""
    source = build("data", {"name": "folder", "path": str(pets), "size": size})
    item = source.open("train")[0]
    assert source.shape == item["x"].shape == (3, 6, 8) and spec_of(source)["size"] in ((6, 8), [6, 8])
    assert build("data", spec_of(source)) == source and source != Folder(str(pets), size=8)
    assert source.open("train").fingerprint != Folder(str(pets), size=(8, 6)).open("train").fingerprint
    assert Folder(str(pets), size="8x8") == Folder(str(pets), size=8) == Folder(str(pets), size="8")


@pytest.mark.parametrize(("width", "height"), [(48, 32), (96, 64), (50, 200), (7, 300), (48, 33)])
def test_fit_covers_any_size_and_keeps_the_middle(width, height):
    ramp = np.tile(np.linspace(0, 255, height, dtype=np.float32)[:, None], (1, width)).astype(np.uint8)
    image = np.array(fit(Image.fromarray(ramp), (32, 48)))
    assert image.shape == (32, 48)
    scale = max(32 / height, 48 / width)
    slope = 255 / (height - 1) / scale
    assert (
        abs(image.mean() - 127.5) < 0.6 * slope + 2 and abs(float(image[24, 5]) - float(image[8, 5]) - 16 * slope) < 4
    )


def test_a_size_that_is_none_is_one_line(pets):
    for size, message in [
        ("32x", "size = '32x'; allowed: 32, [32, 48] or 32x48"),
        ((4, 0), "it must be in [1, 1000000]"),
    ]:
        with pytest.raises(UserError) as error:
            Folder(str(pets), size=size)
        assert message in str(error.value)

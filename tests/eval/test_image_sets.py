"""Pictures of every kind of file: the same ones come back, and what is no picture is refused by name."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gen.config.errors import UserError
from gen.eval.arrays import NpyRows
from gen.eval.image_sets import TensorImages, chosen, open_images

N = 9
PICTURES = np.random.default_rng(0).integers(0, 256, (N, 6, 8, 3), dtype=np.uint8)
EXPECTED = torch.from_numpy(PICTURES).permute(0, 3, 1, 2)
LABELS = np.arange(N) % 3


def png(array, **how) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, how.pop("format", "PNG"), **how)
    return file.getvalue()


def folder_of(path, names=None, arrays=PICTURES):
    names = names or [f"{i:03d}.png" for i in range(len(arrays))]
    for name, array in zip(names, arrays, strict=True):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(array if isinstance(array, bytes) else png(array))
    return path


def all_kinds(root):
    """The same pictures in every kind of file, each with whether it has labels."""
    np.savez(root / "stored.npz", PICTURES, LABELS)
    np.savez_compressed(root / "packed.npz", PICTURES, LABELS)
    np.save(root / "last.npy", PICTURES)
    np.save(root / "first.npy", EXPECTED.numpy())
    save_file({"images": EXPECTED.contiguous(), "labels": torch.from_numpy(LABELS)}, root / "a.safetensors")
    with zipfile.ZipFile(root / "edm.zip", "w") as archive:  # in another order than that of the names
        for i in reversed(range(N)):
            archive.writestr(f"00000/img{i:08d}.png", png(PICTURES[i]))
        labels = [[f"00000/img{i:08d}.png", int(LABELS[i])] for i in range(N)]
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    zipfile.ZipFile(root / "edm.zip").extractall(root / "edm")
    folder_of(root / "flat")
    folder_of(root / "classes", [f"{'abc'[i % 3]}/{i}.png" for i in range(N)])
    return {
        "stored.npz": 1,
        "packed.npz": 1,
        "last.npy": 0,
        "first.npy": 0,
        "a.safetensors": 1,
        "edm.zip": 1,
        "edm": 1,
        "flat": 0,
    }


def test_pictures_are_the_same_of_every_kind(tmp_path) -> None:
    for name, labelled in all_kinds(tmp_path).items():
        images = open_images(tmp_path / name)
        assert (len(images), images.shape, images.name) == (N, (3, 6, 8), name)
        assert torch.equal(images.read(range(N))["images"], EXPECTED), name
        for rows in (range(4, 6), [0, 3, 8], [7], range(2, 3)):  # going back, too
            assert torch.equal(images.read(rows)["images"], EXPECTED[list(rows)]), (name, rows)
        assert (images.labels.tolist() == LABELS.tolist()) if labelled else images.labels is None
        assert images.fingerprint == open_images(tmp_path / name).fingerprint
    classes = open_images(tmp_path / "classes")
    assert classes.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and classes.label_names == ("a", "b", "c")
    assert open_images(tmp_path / "flat").fingerprint != classes.fingerprint
    tensor = TensorImages(EXPECTED)
    assert torch.equal(tensor.read([1, 5])["images"], EXPECTED[[1, 5]]) and tensor.format == "uint8 array"


def test_films_are_sets_too(tmp_path) -> None:
    film = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "film.npz", film)
    images = open_images(tmp_path / "film.npz")
    assert images.shape == (3, 5, 6, 8) and images.read([2])["images"].shape == (1, 3, 5, 6, 8)
    assert torch.equal(images.read([2])["images"][0], torch.from_numpy(film[2]).movedim(-1, 0))


def test_a_file_is_never_in_memory_as_a_whole(tmp_path, monkeypatch) -> None:
    all_kinds(tmp_path)
    monkeypatch.setattr(np, "load", lambda *args, **how: pytest.fail("np.load"))
    for name in ("stored.npz", "packed.npz", "last.npy"):
        open_images(tmp_path / name).read([3])
    assert isinstance(NpyRows(tmp_path / "stored.npz", "arr_0")._mapped, np.memmap)
    assert NpyRows(tmp_path / "packed.npz", "arr_0")._mapped is None


def test_n_of_more_are_chosen_by_the_seed_alone_and_fewer_are_refused() -> None:
    images = TensorImages(EXPECTED, torch.from_numpy(LABELS))
    assert chosen(images, None, 0) is images is chosen(images, N, 3)
    some, again, other = chosen(images, 4, 0), chosen(images, 4, 0), chosen(images, 4, 1)
    rows = [int((x == EXPECTED).flatten(1).all(1).nonzero()) for x in some.read(range(4))["images"]]
    assert rows == sorted(rows) and len(set(rows)) == 4 and some.labels.tolist() == LABELS[rows].tolist()
    assert some.fingerprint == again.fingerprint != other.fingerprint
    with pytest.raises(UserError, match=r"tensor holds 9 pictures, 10 were asked for"):
        chosen(images, 10, 0)


def hostile(root):
    """Folders and files of which each is refused, with what is said."""
    grey, colour = PICTURES[0, :, :, 0], PICTURES[0]
    alpha = np.concatenate([colour, colour[:, :, :1]], 2)
    deep = np.zeros((6, 8), np.uint16)
    palette = Image.fromarray(colour).quantize(8)
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=0)
    yield folder_of(root / "alpha", ["a.png", "b.png"], [colour, alpha]), "b.png has an alpha channel"
    yield folder_of(root / "clear", ["a.png"], [file.getvalue()]), "a.png has an alpha channel"
    yield folder_of(root / "deep", ["a.png"], [deep]), "a.png has more than 8 bits a channel"
    cmyk = io.BytesIO()
    Image.fromarray(colour).convert("CMYK").save(cmyk, "JPEG")
    yield folder_of(root / "cmyk", ["a.jpg"], [cmyk.getvalue()]), "a.jpg is CMYK; allowed: grey and RGB"
    yield folder_of(root / "broken", ["a.png"], [png(colour)[:60]]), "a.png"
    yield folder_of(root / "text", ["a.png"], [b"hello"]), "a.png is no picture, whatever its name says"
    moving = io.BytesIO()
    Image.fromarray(colour).save(moving, "WEBP", save_all=True, append_images=[Image.fromarray(255 - colour)])
    yield folder_of(root / "moving", ["a.webp"], [moving.getvalue()]), "a.webp is animated"
    yield folder_of(root / "empty", ["a.txt"], [b"x"]), "holds no checkpoint of a run, and no pictures"
    sizes = folder_of(root / "sizes", ["a.png", "b.png"], [colour, grey[:4]])
    yield sizes, "a.png is 8 x 6 and b.png is 8 x 4, pictures of one size are needed"
    np.savez(root / "none.npz", images=PICTURES)
    yield root / "none.npz", "none.npz has no arr_0; it has images"
    np.savez(root / "alpha.npz", np.zeros((3, 8, 8, 4), np.uint8))
    yield root / "alpha.npz", r"pictures are uint8 [3, 8, 8, 4]; allowed: uint8 [N, H, W, C], C = 1 or 3"
    np.savez(root / "floats.npz", np.zeros((3, 8, 8, 3), np.float32))
    yield root / "floats.npz", "C = 1 or 3. Round floats first: gen.config.images.to_uint8(x) of values from -1 to 1"
    np.savez(root / "labels.npz", PICTURES, np.arange(4))
    yield root / "labels.npz", "4 labels for 9 pictures"
    (root / "object.npy").write_bytes(object_array())
    yield root / "object.npy", "it holds Python objects, which are never read"
    np.save(root / "cut.npy", PICTURES)
    (root / "cut.npy").write_bytes((root / "cut.npy").read_bytes()[:-5])
    yield root / "cut.npy", "bytes, "
    for name in ("cut.npz", "cut.zip"):
        np.savez(root / "whole.npz", PICTURES)
        (root / name).write_bytes((root / "whole.npz").read_bytes()[:500])
        yield root / name, f"{name} is a zip that was cut short, or is damaged"
    for name in ("no.npz", "no.npy", "no.zip", "no.safetensors"):
        (root / name).write_bytes(b"")
        yield root / name, f"{name} is empty; allowed: a folder or a zip of pictures"
    torch.save(torch.zeros(3), root / "a.pt")
    yield root / "a.pt", "a.pt is a file of torch.save, which is not read: save the samples as .npz"
    (root / "one.png").write_bytes(png(colour))
    yield root / "one.png", "one.png is one picture: give the folder"
    uint8, y = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.arange(3)
    for tensors, says in (
        ({"samples": uint8, "images": uint8.clone()}, "images and samples, each of which may be its pictures"),
        ({"x": uint8, "y": uint8.clone()}, "x and y, each of which may be its pictures"),
        ({"x": uint8, "y": y, "labels": y.clone()}, "labels and y, each of which may be its labels"),
        ({"x": uint8, "y": torch.zeros(3)}, "y is F32; allowed: integers [N]"),
        ({"x": uint8.float()}, "Round floats first"),
    ):
        save_file(tensors, root / "several.safetensors")
        yield root / "several.safetensors", says
    yield folder_of(root / "runs", ["tiny/a.png", "tiny/run.json"], [png(colour), b"{}"]), "holds the run tiny: give"
    (root / "run.json").write_text("{}")
    yield root, "no checkpoint"
    (root / "no.safetensors").write_bytes(b"12345678{}")
    yield root / "no.safetensors", "cannot be read as safetensors"
    (root / "a.exe").write_bytes(b"MZ")
    yield root / "a.exe", "is no file of pictures"
    yield root / "missing", "missing does not exist"


def object_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}, {}], dtype=object), allow_pickle=True)
    return file.getvalue()


def test_what_is_no_set_of_pictures_is_refused_by_name(tmp_path) -> None:
    for path, says in hostile(tmp_path):
        with pytest.raises(UserError) as error:
            images = open_images(path)
            images.read(range(len(images)))
        assert says in str(error.value) and "\n" not in str(error.value), path


def test_a_picture_that_changed_since_it_was_opened_is_refused(tmp_path) -> None:
    images = open_images(folder_of(tmp_path / "flat"))
    (tmp_path / "flat/003.png").write_bytes(png(255 - PICTURES[3]))
    with pytest.raises(UserError, match=r"003.png has changed since"):
        images.read(range(N))


def test_grey_among_colour_is_colour_and_profiles_are_named(tmp_path) -> None:
    grey = PICTURES[0, :, :, 0]
    images = open_images(folder_of(tmp_path / "mixed", ["a.png", "b.png"], [PICTURES[0], grey]))
    assert images.shape == (3, 6, 8) and torch.equal(images.read([1])["images"][0, 2], torch.from_numpy(grey))
    assert open_images(folder_of(tmp_path / "grey", ["a.png"], [grey])).shape == (1, 6, 8)
    with pytest.warns(UserWarning, match="colour profiles in the files are not applied"):
        open_images(folder_of(tmp_path / "icc", ["a.png"], [png(PICTURES[0], icc_profile=b"x" * 200)]))
    with pytest.warns(UserWarning, match="left out 1 file of another kind, such as 'b.txt'"):
        open_images(folder_of(tmp_path / "other", ["a.png", "b.txt"], [PICTURES[0], b"x"]))


def test_lossy_samples_are_refused_unless_allowed(tmp_path) -> None:
    lossless = png(PICTURES[0], format="WEBP", lossless=True)
    lossy = png(PICTURES[0], format="WEBP"), png(PICTURES[0], format="JPEG")
    assert open_images(folder_of(tmp_path / "whole", ["a.webp"], [lossless]), lossy=False).format == "webp"
    for name, data in zip(("a.webp", "a.jpg"), lossy, strict=True):
        folder = folder_of(tmp_path / name, [name, "b.png"], [data, PICTURES[1]])
        with pytest.raises(UserError, match=r"whose loss changes every distance.*--allow-lossy"):
            open_images(folder, lossy=False)
        assert "(lossy): 1" in open_images(folder).format

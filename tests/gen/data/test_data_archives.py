import io
import re
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

import gen
from gen.config.errors import UserError
from gen.config.images import to_uint8
from gen.config.spec import build, override, spec_of
from gen.data.latents import Latents
from gen.data.lib.tensors import split_indices
from gen.data.npz import Npz
from gen.training.recipes.digits import digits


def write_npz(path, n=20, labels=True, **changes):
    g = np.random.default_rng(0)
    arrays = {"arr_0": g.integers(0, 256, (n, 6, 4, 3), dtype=np.uint8)}
    if labels:
        arrays["arr_1"] = np.arange(n) % 4
    np.savez(path, **{k: v for k, v in {**arrays, **changes}.items() if v is not None})
    return arrays


def write_shard(path, n=10, first=0, drop=(), **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    latents = (first + torch.arange(n).float())[:, None, None, None].expand(n, 4, 2, 2).contiguous()
    tensors = {"latents": latents, "latents_flip": -latents, "labels": (first + torch.arange(n)) % 5, **changes}
    save_file({k: v for k, v in tensors.items() if k not in drop}, path)


# --- npz ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_round_trip(tmp_path, compressed):
    arrays = write_npz(tmp_path / "a.npz")
    if compressed:
        np.savez_compressed(tmp_path / "a.npz", **arrays)
    source = Npz(str(tmp_path / "a.npz"), holdout=0.25)
    assert (source.shape, source.classes) == ((3, 6, 4), 4)
    rows = split_indices("train", 20, 5, arrays["arr_1"].tolist())
    for row, item in zip(rows, source.open("train"), strict=True):
        assert np.array_equal(to_uint8(item["x"]).permute(1, 2, 0).numpy(), arrays["arr_0"][row])
        assert item["y"] == arrays["arr_1"][row]


def test_npz_without_labels_and_with_a_given_number_of_classes(tmp_path):
    write_npz(tmp_path / "plain.npz", labels=False)
    plain = Npz(str(tmp_path / "plain.npz"))
    assert plain.classes == 0 and set(plain.open("test")[0]) == {"x"}
    write_npz(tmp_path / "some.npz")
    assert Npz(str(tmp_path / "some.npz"), num_classes=10).classes == 10


def wrong_npz():
    images = np.zeros((20, 3, 6, 4), np.uint8)

    def pickled(path):
        np.savez(path, arr_0=np.array([{}], object))

    def array(path):
        with path.open("wb") as stream:
            np.save(stream, images)

    def truncated(path):
        write_npz(path)
        path.write_bytes(path.read_bytes()[:-200])

    def flipped(path):
        write_npz(path)
        data = bytearray(path.read_bytes())
        data[600] ^= 1
        path.write_bytes(bytes(data))

    def encrypted(path):
        write_npz(path)
        entry = re.compile(rb"(PK\x01\x02.{4}).(.{3})", re.DOTALL)  # in the directory: signature, versions, flags
        path.write_bytes(entry.sub(lambda m: m[1] + b"\x01" + m[2], path.read_bytes()))

    def hollow(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("arr_0.npy", b"\x93NUMPY")

    def stuffed(**headers):
        """Write arrays by what their headers say; after that come bytes that are not as many."""

        def write(path):
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, about in headers.items():
                    stream = io.BytesIO()
                    np.lib.format.write_array_header_1_0(stream, {"fortran_order": False, **about})
                    archive.writestr(f"{name}.npy", stream.getvalue() + bytes(64))

        return write

    def bomb(path):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("arr_0.npy", "w") as stream:
            np.lib.format.write_array_header_1_0(
                stream, {"fortran_order": False, "descr": "|u1", "shape": (2**21, 8, 8, 1)}
            )
            for _ in range(2**7):
                stream.write(bytes(2**20))

    one, many = {"descr": "|u1", "shape": (1, 8, 8, 1)}, {"descr": "|u1", "shape": (10**15, 8, 8, 1)}
    return {
        "10^15 rows": (stuffed(arr_0=many), {}, "arr_0.npy says uint8 [1000000000000000, 8, 8, 1], which takes 64"),
        "10^15 labels": (
            stuffed(arr_0=one, arr_1={"descr": "<i8", "shape": (10**15,)}),
            {},
            "arr_1.npy says int64 [1000000000000000], which takes 8,000,000,000,000,128 bytes, and has 192",
        ),
        "more bytes": (
            stuffed(arr_0={"descr": "|u1", "shape": (1, 4, 4, 1)}),
            {},
            "which takes 144 bytes, and has 192",
        ),
        "another array": (stuffed(arr_0=one, arr_2=many), {}, "arr_2.npy says uint8 [1000000000000000, 8, 8, 1]"),
        "zip bomb": (bomb, {}, "arr_0.npy has 134,217,856 bytes, packed in 130,"),
        "missing": (lambda path: None, {}, "no such file"),
        "text": (lambda path: path.write_text("hello"), {}, "cannot be read as .npz"),
        "empty file": (lambda path: path.write_bytes(b""), {}, "cannot be read as .npz"),
        "truncated": (truncated, {}, "cannot be read as .npz"),
        "bit flip": (flipped, {}, "cannot be read as .npz"),
        "encrypted": (encrypted, {}, "cannot be read as .npz: File 'arr_"),
        "hollow": (hollow, {}, "cannot be read as .npz"),
        "single array": (array, {}, "is a single array"),
        "pickled": (pickled, {}, "arr_0 is object [1]; allowed: uint8"),
        "no arr_0": (lambda path: np.savez(path, images=images), {}, "has no arr_0; it has images"),
        "channels first": (lambda path: write_npz(path, arr_0=images), {}, "arr_0 is uint8 [20, 3, 6, 4]; allowed"),
        "floats": (lambda path: write_npz(path, arr_0=np.zeros((20, 6, 4, 3))), {}, "arr_0 is float64"),
        "three axes": (lambda path: write_npz(path, arr_0=images[0]), {}, "arr_0 is uint8 [3, 6, 4]"),
        "no images": (lambda path: write_npz(path, arr_0=np.zeros((0, 6, 4, 3), np.uint8)), {}, "uint8 [0, 6, 4, 3]"),
        "few labels": (
            lambda path: write_npz(path, arr_1=np.arange(19)),
            {},
            "arr_1 is int64 [19]; allowed: integers [20]",
        ),
        "float labels": (lambda path: write_npz(path, arr_1=np.zeros(20)), {}, "arr_1 is float64 [20]"),
        "one-hot": (lambda path: write_npz(path, arr_1=np.eye(20, dtype=int)), {}, "arr_1 is int64 [20, 20]"),
        "negative label": (lambda path: write_npz(path, arr_1=np.arange(20) - 1), {}, "labels run from -1 to 18"),
        "label too high": (write_npz, {"num_classes": 3}, "labels run from 0 to 3; allowed: 0 to 2"),
        "no labels": (lambda path: write_npz(path, labels=False), {"num_classes": 3}, "has no labels (arr_1)"),
        "holdout": (write_npz, {"holdout": -0.1}, "Npz: holdout = -0.1"),
    }


@pytest.mark.parametrize("case", wrong_npz())
def test_wrong_npz_fails_in_one_line(case, tmp_path):
    make, fields, words = wrong_npz()[case]
    path = tmp_path / "a.npz"
    make(path)
    with pytest.raises(UserError) as error:
        Npz(str(path), **fields).open("train")
    assert words in str(error.value) and "\n" not in str(error.value)


# --- latents --------------------------------------------------------------------------------------------------------


def test_latents_over_shards(tmp_path):
    write_shard(tmp_path / "0.safetensors", 10)
    write_shard(tmp_path / "1.safetensors", 7, first=10)
    write_shard(tmp_path / "2.safetensors", 3, first=17)
    source = Latents(str(tmp_path), scale=0.5, shift=1.0, holdout=0.25)
    assert (source.shape, source.classes) == ((4, 2, 2), 5)
    seen = {}
    for split in ("train", "test"):
        data = source.open(split)
        rows = split_indices(split, 20, 5, [i % 5 for i in range(20)])
        assert len(data) == len(rows)
        for row, item in zip(rows, data, strict=True):
            assert item["y"] == row % 5 and torch.equal(item["x"], torch.full((4, 2, 2), (row - 1) / 2))
            seen[row] = item
    assert len(seen) == 20


def test_latents_of_mirrored_images_join_train(tmp_path):
    write_shard(tmp_path / "a.safetensors")
    plain, both = (Latents(str(tmp_path / "a.safetensors"), flip=flip) for flip in (False, True))
    train, n = both.open("train"), len(plain.open("train"))
    assert len(train) == 2 * n and len(both.open("test")) == len(plain.open("test"))
    assert torch.equal(train[n + 2]["x"], -train[2]["x"]) and train[n + 2]["y"] == train[2]["y"]
    assert both.open("train").fingerprint != plain.open("train").fingerprint


def test_latents_are_standardised_by_channel(tmp_path):
    """LightningDiT's and EDM2's statistics: a list was a TypeError at the first item."""
    write_shard(tmp_path / "a.safetensors")
    raw = Latents(str(tmp_path / "a.safetensors")).open("train")
    scale, shift = [0.5, 1.0, 2.0, 4.0], [1.0, -1.0, 0.0, 3.0]
    data = Latents(str(tmp_path / "a.safetensors"), scale, shift)
    assert data == build("data", spec_of(data)) and data.scale == tuple(scale)
    given = data.open("train")
    by, off = (torch.tensor(v).reshape(4, 1, 1) for v in (scale, shift))
    assert all(torch.equal(given[i]["x"], (raw[i]["x"] - off) * by) for i in range(len(raw)))
    assert len({Latents(data.path, s).open("train").fingerprint for s in (scale, scale[::-1], 0.5)}) == 3
    with pytest.raises(UserError, match=r"scale has 3 numbers; .* has 4 channels"):
        Latents(data.path, scale[:3]).open("train")
    with pytest.raises(UserError, match=r"scale = \(1.0, 0.0\); it must be in \(0, inf\)"):
        Latents(data.path, (1.0, 0.0))


def test_a_model_of_standardised_latents_is_trained_sampled_and_decoded(tmp_path):
    write_shard(tmp_path / "a.safetensors", n=40)
    scale, shift = (0.5, 1.0, 2.0, 4.0), (1.0, -1.0, 0.0, 3.0)
    changes = {
        "data": {"name": "latents", "path": str(tmp_path / "a.safetensors"), "scale": scale, "shift": shift},
        "model": {"name": "dit", "preset": "digits", "size": 2, "patch": 1, "channels": 4, "classes": 5, "depth": 1},
        "steps": 2, "batch_size": 4, "validate_every": 2, "sample_every": 2,
    }  # fmt: skip
    gen.train(override(digits(), changes), tmp_path / "run", quiet=True)
    pipeline = gen.load(tmp_path / "run")
    samples = pipeline.sample(3, steps=2)

    class Coder:
        def decode(self, z):
            return z

    by, off = (torch.tensor(v).reshape(4, 1, 1) for v in (scale, shift))
    torch.testing.assert_close(pipeline.decoded(samples, Coder()).x, samples.x / by + off)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_latents_of_other_precisions_without_labels(tmp_path, dtype):
    write_shard(tmp_path / "a.safetensors", drop=("labels",), latents=torch.ones(10, 4, 2, 2, dtype=dtype))
    source = Latents(str(tmp_path))
    item = source.open("train")[0]
    assert source.classes == 0 and set(item) == {"x"} and item["x"].dtype == torch.float32


def test_features_come_with_the_latents_that_want_them(tmp_path):
    tokens = torch.arange(10.0)[:, None, None] + torch.zeros(10, 4, 3)
    for first, name in enumerate("ab"):
        path, own = tmp_path / f"{name}.safetensors", (tokens + 10 * first).half()
        write_shard(path, first=10 * first, features=own, features_flip=-own)
    source = Latents(str(tmp_path), features=True, flip=True)
    data = source.open("train")
    n = len(data) // 2
    assert data[3]["features"].dtype == torch.float32
    assert torch.equal(data[3]["features"], data[3]["x"][0, 0, 0].expand(4, 3))
    assert torch.equal(data[n + 3]["features"], -data[3]["features"])
    plain = Latents(str(tmp_path), flip=True).open("train")
    assert set(plain[0]) == {"x", "y"} and plain.fingerprint != data.fingerprint


def test_shards_are_opened_once(tmp_path, monkeypatch):
    import safetensors

    write_shard(tmp_path / "0.safetensors")
    write_shard(tmp_path / "1.safetensors", first=10)
    data = Latents(str(tmp_path)).open("train")
    opened, real = [], safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", lambda path, **k: (opened.append(path), real(path, **k))[1])
    for i in [*range(len(data)), *range(len(data))]:
        data[i]
    assert len(opened) == 2


def test_two_worker_processes_read_the_same_items(tmp_path):
    write_shard(tmp_path / "0.safetensors")
    data = Latents(str(tmp_path)).open("train")
    data[0]  # the shard is open here already
    batches = DataLoader(data, 2, num_workers=2)
    assert torch.equal(torch.cat([b["x"] for b in batches]), torch.stack([data[i]["x"] for i in range(len(data))]))


def wrong_latents():
    def shard(**changes):
        return lambda root: write_shard(root / "a.safetensors", **changes)

    def two(**changes):
        def make(root):
            write_shard(root / "a.safetensors")
            write_shard(root / "b.safetensors", **changes)

        return make

    def truncated(root):
        write_shard(root / "a.safetensors")
        data = (root / "a.safetensors").read_bytes()
        (root / "a.safetensors").write_bytes(data[:-100])

    def pickled(root):
        torch.save({"latents": torch.zeros(3, 4, 2, 2)}, root / "a.safetensors")

    flip, features = {"flip": True}, {"features": True}
    tokens = torch.zeros(10, 4, 3)
    return {
        "no features": (shard(), features, "has no features, which features = True needs"),
        "no mirrored features": (shard(features=tokens), {**features, **flip}, "has no features_flip"),
        "few features": (shard(features=tokens[1:]), features, "features is F32 [9, 4, 3]; allowed"),
        "other features": (two(features=tokens), features, "has no features"),
        "missing": (lambda root: None, {"path": "nowhere"}, "no such file or folder"),
        "empty": (lambda root: None, {}, "holds no .safetensors file"),
        "truncated": (truncated, {}, "a.safetensors cannot be read as safetensors"),
        "pickled": (pickled, {}, "a.safetensors cannot be read as safetensors"),
        "no latents": (shard(drop=("latents",)), {}, "has no latents; it has"),
        "three axes": (shard(latents=torch.zeros(10, 4, 2)), {}, "latents is F32 [10, 4, 2]; allowed"),
        "integers": (shard(latents=torch.zeros(10, 4, 2, 2).int()), {}, "latents is I32"),
        "few labels": (shard(labels=torch.zeros(9).long()), {}, "labels is I64 [9]; allowed: I64 or I32 [10]"),
        "float labels": (shard(labels=torch.zeros(10)), {}, "labels is F32 [10]"),
        "negative label": (shard(labels=torch.arange(10) - 1), {}, "labels run from -1 to 8"),
        "label too high": (shard(), {"num_classes": 4}, "labels run from 0 to 4; allowed: 0 to 3"),
        "no labels": (shard(drop=("labels",)), {"num_classes": 4}, "has no labels, but num_classes is 4"),
        "other shape": (two(latents=torch.zeros(10, 4, 2, 3)), {}, "all shards need the same shape"),
        "labels in one": (two(drop=("labels",)), {}, "b.safetensors [10, 4, 2, 2] without labels"),
        "no mirrored": (shard(drop=("latents_flip",)), flip, "has no latents_flip, which flip = True needs"),
        "mirrored shape": (shard(latents_flip=torch.zeros(9, 4, 2, 2)), flip, "latents_flip is [9, 4, 2, 2], but"),
        "no rows": (shard(n=0), {}, "N is 0"),
        "holdout": (shard(), {"holdout": 2.0}, "Latents: holdout = 2.0"),
    }


@pytest.mark.parametrize("case", wrong_latents())
def test_wrong_latents_fail_in_one_line(case, tmp_path):
    make, fields, words = wrong_latents()[case]
    make(tmp_path)
    with pytest.raises(UserError) as error:
        Latents(str(tmp_path / fields.pop("path", "")), **fields).open("train")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_shard_of_latents_that_was_copied_over_another_is_refused(tmp_path):
    for k in range(3):
        write_shard(tmp_path / f"{k}.safetensors", 6, first=6 * k)
    (tmp_path / "2.safetensors").write_bytes((tmp_path / "0.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"2\.safetensors is a copy of .*0\.safetensors"):
        Latents(str(tmp_path)).open("train")

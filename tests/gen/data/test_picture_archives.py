"""Pictures in zips, tar shards and lists: the same items as from a folder, in one order, or refused in one line."""

import csv
import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.data.folder import Folder
from gen.data.table import Table
from gen.data.webdataset import WebDataset
from gen.data.zip import Zip

CLASSES = ("cat", "dog")


def picture(seed, width=12, height=10, kind="PNG"):
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


FILES = {f"{CLASSES[i // 10]}/{i}.png": picture(i) for i in range(20)}


def folder(root):
    for name, data in FILES.items():
        (root / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "pets" / name).write_bytes(data)
    return Folder(str(root / "pets"), size=8)


def zipped(root, method=zipfile.ZIP_STORED, files=FILES, **fields):
    with zipfile.ZipFile(root / "pets.zip", "w", method) as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    return Zip(str(root / "pets.zip"), **{"size": 8, **fields})


def tar(path, members):
    with tarfile.open(path, "w") as opened:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))


def shards(root, label=lambda name: [("cls", name.split("/")[0].encode())], files=FILES):
    (root / "shards").mkdir(exist_ok=True)
    rows = sorted(files.items())
    for k in range(2):
        part = rows[k * 10 : k * 10 + 10]
        tar(
            root / "shards" / f"part-{k:03}.tar",
            [
                (f"{i:04}.{suffix}", data)
                for i, (name, png) in enumerate(part)
                for suffix, data in [("png", png), *label(name)]
            ],
        )
    return WebDataset(str(root / "shards"), size=8)


def table(root, suffix=".csv", rows=None, **fields):
    folder(root)
    rows = rows or [{"path": f"pets/{name}", "label": name.split("/")[0]} for name in sorted(FILES)]
    with (root / f"list{suffix}").open("w", encoding="utf-8", newline="") as stream:
        if suffix == ".jsonl":
            stream.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            lines = csv.DictWriter(stream, list(rows[0]), delimiter="," if suffix == ".csv" else "\t")
            lines.writeheader()
            lines.writerows(rows)
    return Table(str(root / f"list{suffix}"), size=8, **fields)


SOURCES = {
    "zip": zipped,
    "deflated": lambda root: zipped(root, zipfile.ZIP_DEFLATED),
    "zip in a folder": lambda root: zipped(root, files={f"pets/{name}": data for name, data in FILES.items()}),
    "shards": shards,
    "csv": table,
    "tsv": lambda root: table(root, ".tsv"),
    "jsonl": lambda root: table(root, ".jsonl"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_archive_gives_the_items_of_the_folder(kind, tmp_path):
    source, same = SOURCES[kind](tmp_path), folder(tmp_path)
    assert build("data", spec_of(source)) == source and source.shape == (3, 8, 8)
    assert (source.classes, source.label_names) == (2, CLASSES)
    for split in ("train", "test"):
        ours, theirs = source.open(split), same.open(split)
        copy = pickle.loads(pickle.dumps(ours))
        assert len(ours) == len(theirs) and len(ours.fingerprint) == 64
        for i in range(len(ours)):
            for data in (ours, copy):
                assert torch.equal(data[i]["x"], theirs[i]["x"]) and data[i]["y"] == theirs[i]["y"]
    assert source.open("train").fingerprint != source.open("test").fingerprint


def test_the_fingerprint_is_of_the_content_wherever_it_lies(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    prints = [make(tmp_path / name).open("train").fingerprint for make in (zipped, shards, table) for name in "ab"]
    assert prints[::2] == prints[1::2]
    other = zipped(tmp_path / "b", files={**FILES, "dog/19.png": picture(99)}).open("train").fingerprint
    assert other != prints[0]


def edm(labels, files=None):
    names = [f"{i // 10:05}/img{i:08}.png" for i in range(20)]
    files = dict(zip(names, FILES.values(), strict=True)) if files is None else files
    return {**files, "dataset.json": json.dumps({"labels": labels(list(files))}).encode()}


def test_edms_zip_has_the_labels_of_its_list(tmp_path):
    source = zipped(tmp_path, files=edm(lambda names: [[name, i % 3] for i, name in enumerate(names)]), holdout=0.0)
    assert source.open("train").y.tolist() == [i % 3 for i in range(20)] and source.classes == 3
    source = zipped(tmp_path, files=edm(lambda names: None))
    assert source.classes == 0 and set(source.open("train")[0]) == {"x"}
    source = zipped(tmp_path, files={name: data for name, data in edm(lambda n: None).items() if "img" in name})
    assert source.classes == 0  # EDM's numbered folders are no classes


def test_size_channels_and_classes_follow_from_the_pictures(tmp_path):
    assert zipped(tmp_path, size=None).shape == (3, 10, 12)
    grey = io.BytesIO()
    Image.new("L", (6, 6)).save(grey, "PNG")
    assert zipped(tmp_path, files={"a.png": grey.getvalue(), "b.png": grey.getvalue()}, size=None).shape == (1, 6, 6)
    mixed = {"a.png": grey.getvalue(), "b.png": picture(0, 6, 6)}
    assert zipped(tmp_path, files=mixed, size=None).shape == (3, 6, 6)
    with pytest.raises(UserError, match=r"a.png is 6 x 6 and .*b.png is 9 x 6: pictures of several sizes need a size"):
        zipped(tmp_path, files={**mixed, "b.png": picture(0, 9, 6)}, size=None).open("train")


def test_captions_stay_with_their_pictures(tmp_path):
    told = {name: f"a {name.split('/')[0]}, number {i}" for i, name in enumerate(sorted(FILES))}
    by_key = shards(tmp_path, lambda name: [("txt", told[name].encode())])
    in_json = shards(tmp_path, lambda name: [("json", json.dumps({"caption": told[name], "label": 0}).encode())])
    rows = [{"file_name": f"pets/{name}", "text": told[name]} for name in sorted(FILES)]
    for source in (by_key, in_json, table(tmp_path, ".jsonl", rows), table(tmp_path, ".csv", rows)):
        data = source.open("train")
        pictures = folder(tmp_path).open("train")
        listed = {pictures[i]["x"].numpy().tobytes(): told[f"{Path(pictures.where(i)).parent.name}/"
                  f"{Path(pictures.where(i)).name}"] for i in range(len(pictures))}  # fmt: skip
        both = [i for i in range(len(data)) if data[i]["x"].numpy().tobytes() in listed]
        assert len(both) > 10
        assert all(data.caption(i) == listed[data[i]["x"].numpy().tobytes()] for i in both)
    assert folder(tmp_path).open("train").caption(0) is None


def test_a_range_of_shards_and_files_of_other_kinds(tmp_path):
    shards(tmp_path, lambda name: [("cls", b"0"), ("npy", b"")])
    source = WebDataset(str(tmp_path / "shards/part-{000..001}.tar"), size=8, holdout=0.0)
    with pytest.warns(UserWarning, match="left out 20 members of other kinds"):
        data = source.open("train")
    assert len(data) == 20 and data.y.tolist() == [0] * 20 and source.classes == 1 and source.label_names == ()


def test_a_list_that_is_remembered_follows_the_shard(tmp_path):
    first = shards(tmp_path).open("train").fingerprint
    assert shards(tmp_path).open("train").fingerprint == first
    again = shards(tmp_path, files={**FILES, "cat/0.png": picture(77)})
    os.utime(tmp_path / "shards/part-000.tar", (1, 1))
    assert again.open("train").fingerprint != first


def test_the_list_of_a_zip_is_read_once_until_it_changes(tmp_path, monkeypatch):
    """What was left out is said at every opening; a zip that changes, whatever its time, is listed anew."""
    files = {**FILES, "cat/a b.png": picture(50), "readme.txt": b"x"}
    with pytest.warns(UserWarning, match="left out 1 file of another kind$"):
        first = zipped(tmp_path, zipfile.ZIP_DEFLATED, files).open("train")
    opened = []

    class Opened(zipfile.ZipFile):
        def __init__(self, *args, **options):
            opened.append(args)
            super().__init__(*args, **options)

    source = Zip(str(tmp_path / "pets.zip"), size=8)
    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZipFile", Opened)
        with pytest.warns(UserWarning, match="left out 1 file of another kind$"):
            again = source.open("train")
        assert not opened and again.fingerprint == first.fingerprint and again.y.tolist() == first.y.tolist()
        assert source.label_names == CLASSES
        assert all(torch.equal(a["x"], b["x"]) for a, b in zip(first, again, strict=True))
    when = (tmp_path / "pets.zip").stat().st_mtime_ns
    zipped(tmp_path, zipfile.ZIP_DEFLATED, {**FILES, "cat/a b.png": picture(51)})
    os.utime(tmp_path / "pets.zip", ns=(when, when))
    assert Zip(str(tmp_path / "pets.zip"), size=8).open("train").fingerprint != first.fingerprint


def wrong():
    def cut(root):
        shards(root)
        path = root / "shards" / "part-001.tar"
        path.write_bytes(path.read_bytes()[:2300])
        return WebDataset(str(root / "shards"), size=8)

    def gz(root):
        with tarfile.open(root / "a.tar", "w:gz") as opened:
            opened.add(__file__, "a.py")
        return WebDataset(str(root / "a.tar"), size=8)

    def bomb(root):
        with zipfile.ZipFile(root / "a.zip", "w", zipfile.ZIP_DEFLATED) as opened, opened.open("a.png", "w") as out:
            for _ in range(257):
                out.write(bytes(2**20))
        return Zip(str(root / "a.zip"), size=8)

    def lies(root):
        """An entry that unpacks to more than it says."""
        source = zipped(root, zipfile.ZIP_DEFLATED, {"a.png": bytes(10_000), "b.png": picture(0)})
        data = bytearray(Path(source.path).read_bytes())
        at = data.index(b"PK\1\2") + 24
        data[at : at + 4] = (100).to_bytes(4, "little")
        Path(source.path).write_bytes(data)
        return source

    def some_labels(root):
        return shards(root, lambda name: [("cls", b"1")] if "cat" in name else [])

    def row(**values):
        return lambda root: table(root, ".jsonl", [{"path": "pets/cat/0.png", "label": 1}, values])

    return {
        "no zip": (lambda root: (root / "a.zip").write_bytes(b"PK") and Zip(str(root / "a.zip"), 8), "as a zip: File"),
        "no file": (lambda root: Zip(str(root / "a.zip"), 8), "a.zip is not there; give a .zip file"),
        "empty zip": (lambda root: zipped(root, files={"a.txt": b""}), "pets.zip holds no pictures"),
        "bomb": (bomb, "a.png' has 269,484,032 bytes; at most 268,435,456 are read"),
        "lies": (lies, "cannot be read: the file is cut off or damaged there"),
        "bad list": (lambda root: zipped(root, files={**FILES, "dataset.json": b'{"labels": 3}'}), "expected {"),
        "short list": (lambda root: zipped(root, files=edm(lambda n: [[n[0], 1]])), "has no label of 0000"),
        "cut": (cut, "part-001.tar is cut off or damaged at byte 2,048"),
        "gz": (gz, "a.tar cannot be read as a tar: it is compressed, and so cannot be read at random"),
        "no shard": (lambda root: WebDataset(str(root / "a-{0..3}.tar"), 8), "a-0.tar is not there; give a folder of"),
        "some labels": (some_labels, "0000.png has no label, and 10 others have one"),
        "no picture": (row(path="pets/cat/x.png", label=1), "row 2: 'pets/cat/x.png' cannot be read: No such file"),
        "no label": (row(path="pets/cat/1.png"), "list.jsonl, row 2 has no label"),
        "two kinds": (row(path="pets/cat/1.png", label="dog"), "some labels are numbers and some are words"),
        "column": (lambda root: table(root, ".csv", label_column="kind"), "has no column 'kind'."),
        "no paths": (lambda root: table(root, ".csv", [{"a": 1}]), "list.csv has no column of paths (path, file_name"),
        "kind": (lambda root: (root / "a.xls").write_bytes(b"") or Table(str(root / "a.xls"), 8), "expected a .csv"),
    }  # fmt: skip


@pytest.mark.parametrize("case", wrong())
def test_wrong_archives_fail_in_one_line(case, tmp_path):
    make, words = wrong()[case]
    with pytest.raises(UserError) as error:
        make(tmp_path).open("train")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_archive_that_changes_is_noticed_at_the_item(tmp_path):
    data = zipped(tmp_path).open("train")
    content = bytearray(Path(tmp_path / "pets.zip").read_bytes())
    for at in range(60, len(content) - 2000, 40):
        content[at] ^= 1
    (tmp_path / "pets.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"pets.zip: .*png has changed since the data were opened"):
        for i in range(len(data)):
            data[i]

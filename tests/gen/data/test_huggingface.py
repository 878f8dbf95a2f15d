"""Data sets of Hugging Face: the items of the same pictures in a folder, whichever way the table is stored."""

import pickle
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.data import spec_at
from gen.data.folder import Folder
from gen.data.huggingface import HuggingFace
from gen.data.lib.row_groups import ParquetFile
from gen.training.trainer import train
from tests.gen.tiny import tiny
from tests.gen.training.test_processes import apart, small, together
from tests.gen.training.test_trainer import same, weights

CLASSES = ["cat", "dog"]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path):
    for i in range(20):
        path = tmp_path / "pets" / CLASSES[i // 10] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)
    return tmp_path / "pets"


def table(folder, **columns):
    files = sorted(folder.rglob("*.png"))
    values = {"image": [{"bytes": f.read_bytes(), "path": f.name} for f in files]}
    values |= {"label": [CLASSES.index(f.parent.name) for f in files], **columns}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES),
                                  **{name: datasets.Value("string") for name in columns}})  # fmt: skip
    return datasets.Dataset.from_dict(values, features=features)


def parquet(folder):
    (folder.parent / "p").mkdir()
    table(folder).to_parquet(folder.parent / "p/train-00000-of-00001.parquet")
    return folder.parent / "p"


def saved(folder):
    table(folder).save_to_disk(folder.parent / "s")
    return folder.parent / "s"


STORED = {
    "parquet file": lambda folder: parquet(folder) / "train-00000-of-00001.parquet",
    "parquet folder": parquet,
    "save_to_disk": saved,
    "arrow file": lambda folder: next(saved(folder).glob("*.arrow")),
    "imagefolder": lambda folder: folder,
}


@pytest.mark.parametrize("kind", STORED)
def test_every_table_gives_the_items_of_the_folder(kind, folder):
    path = STORED[kind](folder)
    source, same = HuggingFace(str(path), size=8), Folder(str(folder), size=8)
    assert build("data", spec_of(source)) == source
    assert (source.shape, source.classes, source.label_names) == ((3, 8, 8), 2, tuple(CLASSES))
    for split in ("train", "test"):
        ours, theirs = source.open(split), same.open(split)
        copy = pickle.loads(pickle.dumps(ours))
        assert len(ours) == len(theirs)
        for i in range(len(ours)):
            for data in (ours, copy):
                assert torch.equal(data[i]["x"], theirs[i]["x"]) and data[i]["y"] == theirs[i]["y"]
    assert source.open("train").fingerprint == HuggingFace(str(path), size=8).open("train").fingerprint
    assert kind == "imagefolder" or spec_at(str(path))["name"] == "huggingface"


def test_splits_captions_and_columns_of_other_names(folder):
    words = [f"number {i}" for i in range(20)]
    both = datasets.DatasetDict({"train": table(folder, text=words), "held": table(folder, text=words).select([3, 7])})
    both.rename_column("image", "img").save_to_disk(folder.parent / "both")
    source = HuggingFace(str(folder.parent / "both"), size=8, test_part="held")
    assert (len(source.open("train")), len(source.open("test"))) == (20, 2)
    assert [source.open("test").caption(i) for i in range(2)] == ["number 3", "number 7"]
    assert source.open("test").where(1).endswith("both [held], row 1")


def test_what_cannot_be_loaded_is_one_line(folder, tmp_path):
    table(folder, other=["x"] * 20).rename_column("image", "a").save_to_disk(tmp_path / "s")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    for fields, words in {
        ("nobody/nothing",): "nobody/nothing [train] cannot be loaded (",
        (str(tmp_path / "bad.parquet"),): "bad.parquet [train] cannot be loaded (",
        (str(tmp_path / "s"), ("image_column", "b")): "has no column 'b'.",
        (str(tmp_path / "s"), ("caption_column", "b")): "has no column 'b'.",
        (str(tmp_path / "s"), ("image_column", "other")): "row 0 has no picture in other",
    }.items():
        with pytest.raises(UserError) as error:
            HuggingFace(fields[0], 8, **dict(fields[1:])).open("train")
        assert words in str(error.value) and "\n" not in str(error.value)


def groups_of(folder, rows=3):
    """The table of the folder's pictures as two parquet files of small row groups, and one of another part."""
    data = folder.parent / "hub/data"
    data.mkdir(parents=True)
    whole = table(folder, text=[f"number {i}" for i in range(20)])
    whole.select(range(11)).to_parquet(data / "train-00000-of-00002.parquet", batch_size=rows)
    whole.select(range(11, 20)).to_parquet(data / "train-00001-of-00002.parquet", batch_size=rows)
    whole.select([3, 7]).to_parquet(data / "validation-00000-of-00001.parquet")
    return data.parent


STREAMED = {
    "folder": lambda folder: str(groups_of(folder)),
    "url": lambda folder: f"file://{parquet(folder)}",
    "file": lambda folder: str(parquet(folder) / "train-00000-of-00001.parquet"),
    "save_to_disk": lambda folder: str(saved(folder)),
}


@pytest.mark.parametrize("kind", STREAMED)
def test_streamed_rows_are_the_items_of_the_folder(kind, folder):
    path = STREAMED[kind](folder)
    source, same = HuggingFace(path, 8, streaming=True, holdout=0.25), Folder(str(folder), size=8, holdout=0.0)
    assert build("data", spec_of(source)) == source
    assert (source.shape, source.classes, source.label_names) == ((3, 8, 8), 2, tuple(CLASSES))
    whole, seen = same.open("train"), []
    ids = {whole[i]["x"].numpy().tobytes(): i for i in range(20)}
    for split, n in [("train", 15), ("test", 5)]:
        data = source.open(split)
        copy = pickle.loads(pickle.dumps(data))
        assert len(data) == n == sum(data.groups)
        for i in range(n):
            row = ids[data[i]["x"].numpy().tobytes()]
            assert torch.equal(copy[i]["x"], whole[row]["x"]) and data[i]["y"] == whole[row]["y"]
            assert data.caption(i) == (f"number {row}" if kind == "folder" else None)
            seen.append(row)
        assert data.fingerprint == HuggingFace(path, 8, streaming=True, holdout=0.25).open(split).fingerprint
    assert sorted(seen) == list(range(20)) and source.open("train").fingerprint != source.open("test").fingerprint
    with pytest.raises(IndexError):
        data[n]


def test_streamed_pictures_are_flipped_cropped_and_held_in_parts_of_their_own(folder):
    path = str(groups_of(folder))
    source = HuggingFace(path, 8, streaming=True, test_part="validation", flip="double", crop="random", row_groups=2)
    train_data, test = source.open("train"), source.open("test")
    assert (len(train_data), len(test), len(test.groups)) == (40, 2, 1)
    for i in (0, 7, 19):
        assert torch.equal(train_data[i]["x"].flip(2), train_data[20 + i]["x"])
        assert torch.equal(train_data.draw(i, 5)["x"], train_data.draw(i, 5)["x"])
    assert "row group 2, row 1" in train_data.where(7) and len(train_data.source._read) <= 2
    assert not torch.equal(train_data.draw(0, 5)["x"], train_data.draw(0, 6)["x"])
    assert torch.equal(test.draw(0, 5)["x"], test[0]["x"])


def test_a_streamed_run_resumes_to_the_bit_and_reads_each_group_once_an_epoch(folder, tmp_path, monkeypatch):
    path, read = str(groups_of(folder)), []
    data = HuggingFace(path, 8, streaming=True, row_groups=2, holdout=0.0, flip="random", channels=1)
    assert spec_at(f"file://{path}") == {"name": "huggingface", "path": f"file://{path}", "streaming": True}
    run = tiny(
        data=data, model=replace(tiny().model, classes=2), batch_size=4, steps=5, save_every=2, validate_every=0, keep=3
    )
    table_of = ParquetFile.read
    with monkeypatch.context() as patch:
        patch.setattr(ParquetFile, "read", lambda *given: read.append((given[0].path, given[1])) or table_of(*given))
        train(run, tmp_path / "whole", quiet=True)
    assert len(set(read)) == 7 and len(read) <= 7 + 3  # one that both runs share, and data[0]
    train(run, tmp_path / "on", resume=str(tmp_path / "whole/checkpoints/step-0000002"), quiet=True)
    train(replace(run, workers=1), tmp_path / "workers", quiet=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "on"))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "workers"))


@pytest.mark.slow
def test_two_processes_stream_as_one(folder, tmp_path):
    data = HuggingFace(str(groups_of(folder)), 8, streaming=True, row_groups=2, channels=1)
    run = small(data=data, model=replace(tiny().model, classes=2), batch_size=4, sample_every=0)
    train(run, tmp_path / "one", quiet=True)
    together(run, tmp_path / "two")
    assert apart(tmp_path / "one/final", tmp_path / "two/final") < 1e-6


def test_what_cannot_be_streamed_is_one_line(folder, tmp_path):
    path = str(groups_of(folder))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    table(folder).cast_column("label", datasets.Value("string")).to_parquet(tmp_path / "words.parquet")
    for where, fields, words in [
        (path, {"size": None}, "need a size"),
        (path, {"buckets": 4}, "go without buckets"),
        (path, {"part": "trian"}, "Did you mean 'train'?"),
        (str(folder), {}, "is neither .parquet nor .arrow, and others are not streamed"),
        (str(tmp_path / "bad.parquet"), {}, "bad.parquet is no parquet file, or cut off"),
        (str(tmp_path / "none.parquet"), {}, "none.parquet cannot be read (FileNotFoundError"),
        (f"file://{tmp_path}/empty", {}, "holds no .parquet files"),
        (str(tmp_path / "words.parquet"), {"label_column": "label"}, "label holds no int: store it as a ClassLabel"),
        ("nobody/nothing", {}, "nobody/nothing [train] cannot be loaded ("),
    ]:
        with pytest.raises(UserError) as error:
            HuggingFace(where, **{"size": 8, "streaming": True} | fields).open("train")
        assert words in str(error.value) and "\n" not in str(error.value)

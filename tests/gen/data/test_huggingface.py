"""Data sets of Hugging Face: the items of the same pictures in a folder, whichever way the table is stored."""

import pickle

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

"""Hostile files over every loader: nothing in them runs, and each is refused in one line."""

import argparse
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import sys
import warnings
import zipfile
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

import gen
from gen.config import checkpoints
from gen.config.errors import UserError, printable
from gen.config.spec import build
from gen.data.answers import Answers
from gen.data.folder import Folder
from gen.data.latents import Latents
from gen.data.npz import Npz
from gen.data.pairs import Pairs
from gen.data.text import Text
from gen.eval.sources import collect
from gen.models.interop.checkpoints import import_checkpoint
from gen.samplers.decoding_policies.learned import Filter
from gen.text.tokenizers.huggingface import HuggingFace
from gen.training.log import read_metrics
from gen.training.recipes.lists import lists
from tests.gen.tiny import seal, tiny

DEEP, LONG = "[" * 10**5, "9" * 5000


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, root):
        self.root = root

    def __reduce__(self):
        return (os.mkdir, (str(self.root / "ran"),))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    gen.train(tiny(steps=1), folder, quiet=True)
    return folder


@pytest.fixture
def root(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def header(text, body=b""):
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(start, end, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


SAFETENSORS = {
    "empty": b"",
    "header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "header of 90 MB that is not there": struct.pack("<Q", 90 * 2**20) + b"{}",
    "offsets that overlap": header({"a": entry(0, 8, (2,)), "b": entry(4, 12, (2,))}, bytes(12)),
    "offsets beyond the end": header({"a": entry(0, 2**40, (2**38,))}, bytes(16)),
    "a hole": header({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)),
    "shape that overflows": header({"a": entry(0, 4, (2**62, 2**62))}, bytes(4)),
    "shape of another size": header({"a": entry(0, 4, (100,))}, bytes(4)),
    "unknown dtype": header({"a": entry(0, 4, (1,), "X9")}, bytes(4)),
    "deep header": header(DEEP.encode()),
    "negative offsets": header({"a": entry(-4, 0)}, bytes(4)),
    "pickle": pickle.dumps({"a": 1}),
}
MANIFESTS = {  # what a forged manifest says; its own digest is right
    "no files": {"files": None},
    "files is a list": {"files": ["net.safetensors"]},
    "a file without hash": {"files": {"net.safetensors": {}, "net-ema.safetensors": {}}},
    "a file that is a number": {"files": {"net-ema.safetensors": 5}},
    "a file outside": {"files": {"../../secret": {"sha256": "0" * 64, "bytes": 1}}},
    "an absolute file": {"files": {"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}}},
    "role outside": {"role": "../net"},
    "role is a list": {"role": ["net"]},
    "run is text": {"run": "digits"},
    "run is a list": {"run": []},
    "run is none": {"run": None},
    "no shape": {"shape": None},
    "shape of words": {"shape": ["a"]},
    "classes is text": {"classes": "many"},
    "step is text": {"step": "last"},
    "step is none": {"step": None},
    "line is text": {"line": "x"},
}
JSON = {
    "deep": DEEP,
    "long": '{"format": ' + LONG + "}",
    "nan": '{"format": NaN}',
    "binary": "\x80\x02}q\x00.",
    "list": "[]",
    "number": "1",
    "twice": '{"format": 1, "format": 1}',
    "surrogate": r'{"format": "\ud800"}',
}


def png(width, height):
    """Return a PNG that says a size and holds one row."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    about = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", about) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


PICTURES = {
    "1 x 100,000": png(1, 100_000),
    "100,000 x 100,000": png(100_000, 100_000),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch ran) (w) file\n",
    "a PDF": b"%PDF-1.4\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "a pickle": pickle.dumps(1),
    "no picture": b"",
}


def refused(root, call):
    """Call, and return the one line of the error; nothing may have run."""
    before = set(sys.modules)
    with pytest.raises(UserError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call()
    assert not list(root.rglob("ran"))
    line = str(caught.value)
    assert line == printable(line) and len(line) < 1000
    assert not {name for name in set(sys.modules) - before if "evil" in name}
    return line


@pytest.mark.parametrize("case", MANIFESTS)
def test_forged_manifests(case, root):
    shutil.rmtree(root / "run/checkpoints")
    seal(root / "run/final", **MANIFESTS[case])
    refused(root, lambda: gen.load(root / "run"))


@pytest.mark.parametrize("case", JSON)
def test_json(case, root):
    """In a manifest, a run.json, a record, a searched grid and mask, an index, configs and a tokenizer."""
    text = JSON[case].encode("latin-1" if case == "binary" else "utf-8")
    shutil.rmtree(root / "run/checkpoints")
    for name in ("run/final/manifest.json", "run.json", "run/eval/a.json", "grid.json", "config.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(text)
    save_file({"a": torch.ones(1)}, root / "model-1.safetensors")
    (root / "model.safetensors.index.json").write_bytes(text)
    from gen.cli.train import settings
    from gen.models.encoders.lib.vit import config_of

    recipe = argparse.Namespace(recipe="run.json", overrides={})
    for call in (
        lambda: gen.load(root / "run"),
        lambda: settings(recipe),
        lambda: collect(root / "run"),
        lambda: build("samplers.grids", {"name": "searched", "file": "grid.json"}).read(),
        lambda: build("samplers.caches", {"name": "searched", "file": "grid.json"}).start(2),
        lambda: import_checkpoint(root, out="x"),
        lambda: build("models.autoencoders", {"name": "diffusers", "folder": str(root)}).load(),
        lambda: config_of(str(root), "dinov2"),
        lambda: HuggingFace("config.json", "mask").vocab_size,
    ):
        refused(root, call)
    (root / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + text)
    assert read_metrics(root / "metrics.jsonl")[0] == {"step": 1}  # a log is read as far as it is one
    (root / "a.jsonl").write_bytes(text)
    refused(root, lambda: Text("a.jsonl").open("train"))


@pytest.mark.parametrize("case", SAFETENSORS)
def test_safetensors(case, root):
    """As weights of a checkpoint, latents, a filter, and for import."""
    content = SAFETENSORS[case]
    (root / "a.safetensors").write_bytes(content)
    shutil.rmtree(root / "run/checkpoints")
    info = json.loads((root / "run/final/manifest.json").read_text())
    (root / "run/final/net-ema.safetensors").write_bytes(content)
    about = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    seal(root / "run/final", files=info["files"] | {"net-ema.safetensors": about})
    for call in (
        lambda: gen.load(root / "run"),
        lambda: Latents("a.safetensors").open("train"),
        lambda: Filter.read("a.safetensors"),
        lambda: import_checkpoint("a.safetensors", out="x"),
    ):
        refused(root, call)


@pytest.mark.parametrize("case", ["missing", "shape", "dtype", "more", "wide", "deep"])
def test_weights_of_another_network(case, root):
    shutil.rmtree(root / "run/checkpoints")
    info = checkpoints.read(root / "run/final")
    tensors, run = checkpoints.read_tensors(root / "run/final", "net-ema.safetensors", info), info["run"]
    first = next(iter(tensors))
    if case == "missing":
        del tensors[first]
    elif case == "more":
        tensors["evil"] = torch.ones(1)
    elif case == "shape":
        tensors[first] = torch.ones(3)
    elif case == "dtype":
        tensors[first] = torch.ones(tensors[first].shape, dtype=torch.complex64)
    else:  # a network that no memory holds
        large = {"wide": {"width": 2**18, "depth": 8}, "deep": {"depth": 10**9}}[case]
        run = {**run, "model": {**run["model"], **large}}
    content = save(tensors)
    (root / "run/final/net-ema.safetensors").write_bytes(content)
    about = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    seal(root / "run/final", files=info["files"] | {"net-ema.safetensors": about}, run=run)
    refused(root, lambda: gen.load(root / "run"))


@pytest.mark.parametrize("case", PICTURES)
def test_pictures(case, root):
    (root / "pictures").mkdir()
    (root / "pictures/a.png").write_bytes(PICTURES[case])

    def read():
        data = Folder("pictures", 256, holdout=0).open("train")
        return [data[i] for i in range(len(data))]

    refused(root, read)


PICKLES = {
    "a pickle": lambda trap: pickle.dumps(trap),
    "within": lambda trap: pickle.dumps({"model": {"a": trap}}),
    "protocol 0": lambda trap: pickle.dumps(trap, 0),
    "a torch file": lambda trap: torch_file({"model": {"a": trap}}),
    "an old torch file": lambda trap: torch_file({"a": trap}, _use_new_zipfile_serialization=False),
    "a zip": lambda trap: zipped("archive/data.pkl", pickle.dumps(trap)),
    "cut": lambda trap: torch_file({"a": torch.ones(9)})[:-40],
    "an object array": lambda trap: numpy_file(np.array([trap], object)),
}


def torch_file(value, **options):
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def numpy_file(value):
    stream = io.BytesIO()
    np.savez(stream, arr_0=value)
    return stream.getvalue()


def zipped(name, content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize("case", PICKLES)
def test_pickles(case, root):
    """For import under every name, as weights, latents, pictures in an .npz, text and a tokenizer."""
    content = PICKLES[case](Trap(root))
    shutil.rmtree(root / "run/checkpoints")
    names = ("a.pt", "a.bin", "a.ckpt", "a.pth", "a.pkl", "a.safetensors")
    for name in (*names, "a.npz", "a.jsonl", "tokenizer.json", "run/final/net-ema.safetensors"):
        (root / name).write_bytes(content)
    info = json.loads((root / "run/final/manifest.json").read_text())
    about = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    seal(root / "run/final", files=info["files"] | {"net-ema.safetensors": about})
    for name in names:
        refused(root, lambda name=name: import_checkpoint(name, "dit", out="x"))
    for call in (
        lambda: gen.load(root / "run"),
        lambda: Latents("a.safetensors").open("train"),
        lambda: Npz("a.npz").open("train"),
        lambda: Text("a.jsonl").open("train"),
        lambda: HuggingFace("tokenizer.json", "mask").vocab_size,
    ):
        refused(root, call)


STORES = [None, {}, [], {"n": 1, "shards": 10**12, "size": 1}, {"n": 1, "shards": "x", "size": 1}]


@pytest.mark.parametrize("value", STORES)
def test_stores(value, root):
    for kind in ("pairs", "answers"):
        shard = root / kind / "shard-00000"
        columns = {f"{kind}.safetensors": {"x": torch.ones(1, 2)}}
        checkpoints.write(shard, columns, {"store": value, "index": 0, "rows": 1})
    refused(root, lambda: Pairs("pairs").open("train"))
    refused(root, lambda: Answers("answers", lists().data).open("train"))


def test_a_folder_that_runs_as_a_library_is_none(root):
    """The names by which transformers and diffusers find code beside the weights lead nowhere."""
    evil = "import os\nos.mkdir('ran')\nclass Evil: ...\nclass AutoencoderKL: ...\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "pipeline.py", "__init__.py", "sitecustomize.py"):
        (root / name).write_text(evil)
    config = {
        "_class_name": "Evil", "model_type": "dinov2", "hidden_size": 8, "architectures": ["Evil"],
        "auto_map": {"AutoModel": "modeling_evil.Evil", "AutoConfig": "configuration_evil.Evil"},
    }  # fmt: skip
    save_file({"a": torch.ones(1)}, root / "model.safetensors")
    for kind in ("Evil", "modeling_evil.Evil", "DiffusionPipeline", "utils", "__builtins__"):
        (root / "config.json").write_text(json.dumps(config | {"_class_name": kind}))
        refused(root, lambda: build("models.autoencoders", {"name": "diffusers", "folder": str(root)}).load())
        refused(root, lambda: import_checkpoint(root, out="x"))
    refused(root, lambda: build("models.encoders", {"name": "dinov2", "path": str(root)}).load("cpu"))

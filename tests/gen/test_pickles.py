"""Files of torch and pickles are data: nothing of them runs, what is harmless is kept, and damage is noticed."""

from __future__ import annotations

import argparse
import builtins
import collections
import copyreg
import io
import os
import pickle
import sys
import types
import warnings
import zipfile
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import gen
from gen.config.errors import UserError
from gen.config.pickles import Record, as_tensor, module_attributes, module_state, plain
from gen.config.torch_file import read_torch
from gen.models.interop.checkpoints import import_checkpoint
from tests.models.interop import published

PROTOCOLS = range(6)


class Calls:
    """An object whose pickle calls a function, and then its `__setstate__`."""

    def __init__(self, function, *args, state=None):
        self.call = (function, args, state)

    def __reduce__(self):
        return self.call


class Restored:
    """A class whose `__setstate__` and constructor act."""

    ran: ClassVar[list[object]] = []

    def __new__(cls, *args):
        if args:
            cls.ran.append(args)
        return object.__new__(cls)

    def __getnewargs__(self):
        return (1,)

    def __getstate__(self):
        return {"a": 1}

    def __setstate__(self, state):
        self.ran.append(state)


def hostile(ran):
    """Objects that leave the folder `ran`, or an entry in Restored.ran, wherever their pickle is executed."""
    code = f"__import__('os').mkdir({str(ran)!r})"
    make = Calls(os.mkdir, str(ran))
    return {
        "system": Calls(os.system, f"mkdir {ran}"),
        "eval": Calls(builtins.eval, code),
        "exec": Calls(builtins.exec, code),
        "getattr": Calls(
            Calls(getattr, Calls(__import__, "os"), "mkdir").__reduce__()[0], Calls(__import__, "os"), code
        ),
        "state": Calls(collections.OrderedDict, state=make),
        "nested": {"model": {"ema": [({"a": make},)]}},
        "key": {frozenset([make]): 1},
        "reconstructor": Calls(copyreg._reconstructor, Restored, object, None, state={"a": 1}),
        "setstate": Restored(),
        "map": Calls(list, Calls(builtins.map, os.mkdir, [str(ran)])),
        "partial": Calls(__import__("functools").partial, os.mkdir, str(ran)),
        "tensor": Calls(torch._utils._rebuild_tensor_v2, make, 0, (1,), (1,), False, make),
        "storage": Calls(torch.storage._load_from_bytes, pickle.dumps(make)),
    }


@pytest.mark.parametrize("kind", hostile("/x"))
def test_nothing_that_a_pickle_names_is_called(tmp_path, kind):
    ran = tmp_path / "ran"
    for protocol in PROTOCOLS:
        plain_file, inside = tmp_path / "a.pkl", tmp_path / "a.pt"
        content = {"model": hostile(ran)[kind]}
        raw = pickle.dumps(content, protocol)
        plain_file.write_bytes(raw)
        with zipfile.ZipFile(inside, "w") as archive:
            archive.writestr("a/data.pkl", raw)
        Restored.ran.clear()
        for path in (plain_file, inside):
            try:
                read_torch(path)
            except UserError as error:
                assert "\n" not in str(error)
        assert not ran.exists() and not Restored.ran, protocol


OPCODES = {
    "a global that acts when it is imported": b"cevil_module\nanything\n.",
    "an attribute of a module, dotted": b"\x80\x04\x8c\x02os\x8c\x0bpath.exists\x93\x8c\x01a\x85R.",
    "INST": b"(S'mkdir ran'\nios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\nX\x09\x00\x00\x00mkdir ranO.".replace(b"O.", b"o."),
    "a persistent id": b"cos\nsystem\nQ.",
    "a persistent id that is text": b"Pstorage\n.",
    "BUILD of a list": b"](dS'a'\nb.",
    "a memo of four thousand million entries": b"\x80\x02Nr\xff\xff\xff\xff.",
    "eight million million bytes": b"\x80\x04\x8e\x00\x00\x00\x00\x00\x07\x00\x00abc.",
    "eight million million bytes to change": b"\x80\x05\x96\x00\x00\x00\x00\x00\x07\x00\x00abc.",
    "a frame of eight million million bytes": b"\x80\x05\x95\x00\x00\x00\x00\x00\x07\x00\x00abc.",
    "a call of a number": b"\x80\x02K\x05)R.",
    "a call with a list": b"\x80\x02cos\nsystem\n]R.",
    "NEWOBJ of a text": b"\x80\x02X\x03\x00\x00\x00abc)\x81.",
    "an extension": b"\x80\x02\x82\x01.",
    "nothing on the stack": b"R.",
    "no end": b"\x80\x04N",
    "a long number": b"L" + b"9" * 6000 + b"L\n.",
}


@pytest.mark.parametrize("kind", OPCODES)
def test_every_opcode_is_harmless(tmp_path, monkeypatch, kind):
    (tmp_path / "evil_module.py").write_text("import os; os.mkdir('ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a.pkl").write_bytes(OPCODES[kind])
    try:
        read_torch(tmp_path / "a.pkl")
    except UserError as error:
        assert "\n" not in str(error)
    assert not (tmp_path / "ran").exists() and "evil_module" not in sys.modules


def test_a_registered_extension_is_not_called(tmp_path):
    copyreg.add_extension("os", "getcwd", 240)
    try:
        (tmp_path / "a.pkl").write_bytes(b"\x80\x02\x82\xf0)R.")
        with pytest.raises(UserError, match="opcode EXT1"):
            read_torch(tmp_path / "a.pkl")
    finally:
        copyreg.remove_extension("os", "getcwd", 240)


def test_few_bytes_do_not_become_a_large_tensor(tmp_path):
    torch.save({"a": torch.ones(1).expand(10**12), "b": torch.ones(2)}, tmp_path / "a.pt")
    content = read_torch(tmp_path / "a.pt")
    assert isinstance(content["a"], Record) and torch.equal(content["b"], torch.ones(2))


def inert():
    """What trainings save beside weights, and how it is read."""
    return {
        "scalar": (np.float64(3.5), 3.5),
        "integer": (np.int64(-2), -2),
        "path": (PurePosixPath("/a/b"), "/a/b"),
        "defaultdict": (collections.defaultdict(list, {"a": [1]}), {"a": [1]}),
        "namespace": (argparse.Namespace(lr=1e-4, model="DiT-XL/2"), {"lr": 1e-4, "model": "DiT-XL/2"}),
        "bytes": (b"abc", None),
        "set": ({1, 2}, None),
        "dtype": (torch.bfloat16, None),
        "device": (torch.device("cpu"), None),
        "size": (torch.Size([1, 2]), [1, 2]),
        "function": (os.getcwd, None),
        "class": (nn.Linear, None),
    }


@pytest.mark.parametrize("kind", inert())
def test_what_lies_beside_the_weights_is_inert(tmp_path, kind):
    value, expected = inert()[kind]
    content = {"ema": published.dit(), "x": value}
    torch.save(content, tmp_path / "a.pt")
    torch.save(content, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    for protocol in PROTOCOLS:
        (tmp_path / f"{protocol}.pkl").write_bytes(pickle.dumps(content, protocol))
    for path in sorted(tmp_path.iterdir()):
        read = read_torch(path)
        assert plain(read["x"]) == expected, path
        assert all(torch.equal(read["ema"][name], value) for name, value in content["ema"].items())
    import_checkpoint(tmp_path / "a.pt", "dit", out=tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float32", ">f4", "float16", "int64", "bool", "complex64"])
def test_arrays_are_tensors(tmp_path, dtype):
    array = (np.arange(6).reshape(2, 3).T > 2).astype(dtype)
    expected = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    for protocol in PROTOCOLS:
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": array, "b": np.array(["text", None], object)}, protocol))
        content = read_torch(tmp_path / "a.pkl")
        read = as_tensor(content["a"])
        assert read is not None and torch.equal(read, expected) and read.dtype == expected.dtype
        assert as_tensor(content["b"]) is None


def test_a_module_that_was_saved_whole_is_its_state_dict(tmp_path):
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    net.register_buffer("table", torch.ones(2), persistent=False)
    torch.save(net, tmp_path / "a.pt")
    content, expected = read_torch(tmp_path / "a.pt"), net.state_dict()
    state = module_state(content)
    assert state is not None and state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert module_attributes(content)["0.in_features"] == 2


@pytest.mark.parametrize("old", [False, True])
def test_views_and_shared_numbers_are_read_exactly(tmp_path, old):
    long = torch.arange(24, dtype=torch.float64)
    content = {"a": long[3:9].view(2, 3).T, "b": long, "c": long[::5], "e": torch.empty(0), "s": torch.tensor(2)}
    content |= {"f8": long.to(torch.float8_e4m3fn), "u16": torch.ones(2, dtype=torch.uint16), "p": nn.Parameter(long)}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
    read = read_torch(tmp_path / "a.pt")
    for name, value in content.items():
        assert read[name].dtype == value.dtype and torch.equal(read[name].double(), value.double()), name


@pytest.mark.parametrize("name", ["a.pt", "a.bin"])
def test_a_flipped_bit_is_noticed_by_the_files_own_checksums(tmp_path, name):
    """21 of 30 were imported with other weights."""
    content = published.dit()
    torch.save(content, tmp_path / name)
    raw, g = bytearray((tmp_path / name).read_bytes()), torch.Generator().manual_seed(0)
    for place in torch.randint(len(raw), (30,), generator=g).tolist():
        flipped = bytearray(raw)
        flipped[place] ^= 16
        (tmp_path / name).write_bytes(flipped)
        try:
            read = read_torch(tmp_path / name)
        except UserError as error:
            assert "damaged" in str(error) or "no file of torch.save" in str(error)
        else:  # a byte that says nothing, such as padding
            assert all(torch.equal(read[key], value) for key, value in content.items())


def test_a_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_torch(tmp_path / "a.pt")["a"], torch.ones(3))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "a pointer of git-lfs"),
        (b"<!DOCTYPE html><html>", "a page of HTML"),
        (b"\n<html>", "a page of HTML"),
        (b'{"error": "not found"}', "JSON text"),
        (b"GGUF\x03", "a GGUF file"),
        (b"\x1f\x8b\x08", "compressed with gzip"),
        (b"\0" * 257 + b"ustar\0", "a tar archive"),
    ],
)
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.bin", "a.pkl"])
def test_a_file_that_holds_no_weights_is_called_what_it_is(tmp_path, name, start, words):
    (tmp_path / name).write_bytes(start + b" " * 400)
    with pytest.raises(UserError, match=f"{name} is {words}"):
        import_checkpoint(tmp_path / name, "dit", out=tmp_path / "out")


def test_archives_of_other_kinds_are_called_what_they_are(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    with pytest.raises(UserError, match=r"is an archive, no file of torch\.save"):
        read_torch(tmp_path / "a.npz")


def test_the_tensors_of_a_torchscript_module_are_read_and_its_code_is_not(tmp_path):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Sequential(nn.BatchNorm2d(3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(net.eval(), torch.zeros(1, 2, 4, 4)).save(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive, zipfile.ZipFile(tmp_path / "b.pt", "w") as other:
        for entry in archive.infolist():
            is_code = "/code/" in entry.filename
            other.writestr(entry.filename, "import os; os.abort()" if is_code else archive.read(entry))
    for name in ("a.pt", "b.pt"):
        state = module_state(read_torch(tmp_path / name))
        assert state.keys() == net.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


# EDM and EDM2 --------------------------------------------------------------------------------------------------------


class Persistent(nn.Module):
    """As torch_utils.persistence makes classes: a pickle holds the source, and calls a function that runs it."""

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": "import os; os.mkdir('ran')", "class_name": "Net"}
        rebuild = sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj
        return rebuild, ({**meta, "state": self.__dict__},), None


def module_of(state, **attributes):
    """A module with a state dict's names."""
    net = Persistent()
    for name, value in state.items():
        *path, last = name.split(".")
        inner = net
        for part in path:
            if part not in inner._modules:
                inner.add_module(part, Persistent() if part in ("unet", "conv_res0") else nn.Module())
            inner = inner._modules[part]
        if last in ("freqs", "phases"):
            inner.register_buffer(last, value)
        else:
            inner.register_parameter(last, nn.Parameter(value))
    net.__dict__ |= attributes
    return net


@pytest.fixture
def persistence(monkeypatch):
    for name in ("torch_utils", "torch_utils.persistence"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("this would run the file's source")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj


def test_a_pickle_of_edm2_is_read_exactly(tmp_path, monkeypatch, persistence):
    """Its class's source stays text; each tensor is a file of torch's first format inside the pickle."""
    monkeypatch.chdir(tmp_path)
    state = published.edm2()
    net = module_of(state, sigma_data=0.4)
    net.unet.label_balance = 0.25
    net.unet.enc._modules["4x4_block0"].__dict__ |= {"num_heads": 2, "clip_act": 128, "res_balance": 0.5}
    content = {"ema": net, "encoder": Persistent(), "dataset_kwargs": {"path": "x"}}
    Path("a.pkl").write_bytes(pickle.dumps(content))
    done = import_checkpoint("a.pkl", out="out")
    model = done.run.model
    assert (model.head_width, model.label_balance, model.clip, model.residual_balance) == (16, 0.25, 128.0, 0.5)
    assert done.run.parameterisation.sigma_data == 0.4
    assert (done.weights, done.matched) == ("ema", len(state))
    ours = gen.load("out").denoiser.net.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in state.items())
    assert not Path("ran").exists()


def test_the_standardisation_of_edm2_s_encoder_is_that_of_its_record(tmp_path, monkeypatch, persistence):
    monkeypatch.chdir(tmp_path)
    scale, bias = np.array([0.1, 0.2, 0.3, 0.4], np.float32), np.array([1, -1, 0.5, 0], np.float32)
    encoder = Persistent()
    encoder.__dict__ |= {"scale": scale, "bias": bias, "vae_name": "somebody/vae", "_vae": None}
    Path("a.pkl").write_bytes(pickle.dumps({"ema": module_of(published.edm2()), "encoder": encoder}))
    latent = import_checkpoint("a.pkl", {"name": "edm2", "head_width": 16}, out="out").latent
    assert (latent["autoencoder"], latent["image_range"]) == ("somebody/vae", [0.0, 1.0])
    assert latent["scale"] == pytest.approx(scale.tolist())
    assert latent["shift"] == pytest.approx((-bias / scale).tolist())
    encoder.__dict__ |= {"scale": scale[:2]}
    Path("b.pkl").write_bytes(pickle.dumps({"ema": module_of(published.edm2()), "encoder": encoder}))
    with pytest.raises(UserError, match="expected 4 numbers"):
        import_checkpoint("b.pkl", {"name": "edm2", "head_width": 16}, out="other")


def test_an_unknown_object_is_named(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(Calls(os.mkdir, str(tmp_path / "ran"))))
    with pytest.raises(UserError, match=r"holds an object of posix.mkdir, expected tensors by name"):
        import_checkpoint(tmp_path / "a.pkl", "dit", out=tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_a_state_of_a_training_is_read(tmp_path):
    torch.save(
        {"net": published.dit(), "optimizer_state": {"state": {0: {"exp_avg": torch.ones(3)}}}}, tmp_path / "a.pt"
    )
    assert import_checkpoint(tmp_path / "a.pt", "dit", out=tmp_path / "out").weights == "net"


def test_bytes_of_a_stream_are_read_as_a_file_is():
    from gen.config.torch_file import read_legacy

    out = io.BytesIO()
    torch.save(torch.arange(3), out, _use_new_zipfile_serialization=False)
    assert torch.equal(read_legacy(out.getvalue()), torch.arange(3))

"""A model is loaded and written in the memory that its weights take, in the file's dtype if that is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gen
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.config.spec import build
from gen.config.tensor_files import Damaged, read_file, write_file
from gen.diffusion.net import empty_network
from gen.models.dit import DiT
from gen.models.interop.checkpoints import import_checkpoint
from gen.models.text import Text
from gen.text.decoding import Decoding
from gen.text.mask_path import LogLinear
from gen.training.run import Run, run_spec
from tests.models.test_families import random_net

WIDE = DiT(size=8, channels=4, classes=10, width=768, depth=3, heads=12)  # 90 MB


def status(field):
    """Bytes that this process takes ("VmRSS") or took at most ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def peak(act, *args, **options):
    """The most bytes that an act takes beside what was there before, and what it returns."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = status("VmRSS")
    done = act(*args, **options)
    return status("VmHWM") - before, done


def written(folder, spec, tensors):
    about = {"role": "net", "shape": [spec.channels, spec.size, spec.size], "classes": spec.classes}
    run = run_spec(Run(model=spec, ema=()))
    checkpoints.write(folder, {"net.safetensors": tensors}, {"run": run, "step": 0, "latent": {}, **about})


@pytest.mark.slow
def test_the_peak_of_loading_and_of_writing_is_one_model(tmp_path):
    """It was three: the file's bytes, its tensors, and the fresh module."""
    net = WIDE.build()
    size = sum(value.numel() * value.element_size() for value in net.state_dict().values())
    state = net.state_dict()
    assert peak(written, tmp_path / "a", WIDE, state)[0] < 0.3 * size
    torch.save({"ema": {name: value.half() for name, value in state.items()}}, tmp_path / "b.pt")
    del net, state
    spec = {"name": "dit", "heads": 12, "classes": 10}
    assert peak(import_checkpoint, tmp_path / "b.pt", spec, out=tmp_path / "b")[0] < 1.2 * size
    least, pipeline = peak(gen.load, tmp_path / "a")
    assert least < 1.2 * size
    del pipeline
    half, pipeline = peak(gen.load, tmp_path / "a", dtype="bfloat16")
    assert half < 0.7 * size
    assert {p.dtype for p in pipeline.denoiser.net.parameters()} == {torch.bfloat16}


def test_the_peak_of_loading_a_text_model_in_bfloat16_is_its_file(tmp_path):
    spec = Text(vocab_size=4000, width=768, depth=12)  # 182 MB
    with torch.device("meta"):
        shapes = spec.build().state_dict()
    state = {name: torch.zeros(value.shape, dtype=torch.bfloat16) for name, value in shapes.items()}
    size = sum(value.numel() * value.element_size() for value in state.values())
    run = run_spec(Run(model=spec, path=LogLinear(), parameterisation=None, sampler=Decoding(), ema=()))
    about = {"role": "net", "shape": [256], "classes": 0, "step": 0, "latent": {}}
    checkpoints.write(tmp_path / "a", {"net.safetensors": state}, {"run": run, **about})
    del state
    least, pipeline = peak(gen.load, tmp_path / "a")
    assert least < 1.2 * size
    assert {p.dtype for p in pipeline.net.parameters()} == {torch.bfloat16}


def test_loading_in_bfloat16_computes_in_it(tmp_path):
    spec = build("models", {"name": "dit", "preset": "digits"})
    net = random_net(spec, dtype=torch.float32)
    written(tmp_path / "a", spec, net.state_dict())
    full, half = gen.load(tmp_path / "a"), gen.load(tmp_path / "a", dtype="bfloat16")
    x = torch.randn(2, 1, 8, 8)
    at, cond = torch.tensor(0.5, dtype=torch.float64), {"y": torch.tensor([1, 2])}
    exact, close = full.denoiser(x, at, cond).x0, half.denoiser(x, at, cond).x0
    assert close.dtype == torch.float32 and not torch.equal(close, exact)
    torch.testing.assert_close(close, exact, rtol=0.1, atol=0.1)
    assert half.sample(2, steps=2).x.dtype == torch.float32
    for wrong in ("bfloat", "int64", torch.int8, 16):
        with pytest.raises(UserError, match=r"or a floating dtype|dtype: got 16, expected dtype"):
            gen.load(tmp_path / "a", dtype=wrong)
    with pytest.raises(UserError, match=r"dtype torch.float16: DiTNet computes in torch.float32, torch.bfloat16"):
        gen.load(tmp_path / "a", dtype="float16")


class Draws(TorchDispatchMode):
    """Counts the random numbers that are drawn."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.name().split("::")[1].split(".")[0] in ("normal_", "uniform_", "randn", "rand") and not out.is_meta:
            self.count += out.numel()
        return out


@pytest.mark.parametrize("name", ["dit", "lightnet", "dimsum", "ddt", "ssm", "unet", "edm2", "reg", "mlp"])
def test_tables_that_are_computed_are_there_and_weights_are_not_drawn(name):
    spec = build("models", {"name": name, "preset": "digits"} if name != "mlp" else {"name": "mlp", "channels": 2})
    torch.manual_seed(0)
    real = spec.build()
    with Draws() as draws:
        empty = empty_network(spec, size=2**24)
    assert draws.count < 1000  # a constructor may draw numbers for something else
    empty.load_state_dict(real.state_dict(), assign=True)
    for (key, ours), (_, theirs) in zip(empty.named_buffers(), real.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), key
    assert not [key for key, value in (*empty.named_parameters(), *empty.named_buffers()) if value.is_meta]


class Loose(nn.Module):
    """A network with a table that is no buffer, and a constructor that looks at a value."""

    def __init__(self):
        super().__init__()
        self.table = torch.arange(3.0)
        self.scale = float(torch.ones(()))
        self.weight = nn.Parameter(torch.ones(2))


def test_a_constructor_may_look_at_values():
    class Spec:
        build = staticmethod(Loose)

    net = empty_network(Spec(), size=2**10)
    assert net.weight.is_meta and torch.equal(net.table, torch.arange(3.0))


def test_files_are_safetensors_and_every_byte_of_them_counts(tmp_path):
    tensors = {
        "a": torch.randn(3, 5).T, "b": torch.arange(3), "c": torch.tensor(2.5, dtype=torch.float64),
        "d": torch.ones(0, 4),
        "e": torch.ones(3, dtype=torch.bfloat16), "f": torch.tensor([True]), "g": torch.ones(2).to(torch.float8_e4m3fn),
    }  # fmt: skip
    sha256 = write_file(tmp_path / "a", tensors)
    for read in (load_file(tmp_path / "a"), read_file(tmp_path / "a", sha256)):
        assert read.keys() == tensors.keys()
        for name, value in tensors.items():
            assert read[name].dtype == value.dtype and read[name].shape == value.shape
            assert torch.equal(read[name].double(), value.double())
    raw = (tmp_path / "a").read_bytes()
    for place in range(len(raw)):
        (tmp_path / "a").write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(Damaged):
            read_file(tmp_path / "a", sha256)
    for cut in (0, 4, 8, 20, len(raw) - 1):
        (tmp_path / "a").write_bytes(raw[:cut])
        with pytest.raises(Damaged):
            read_file(tmp_path / "a", sha256)
    (tmp_path / "a").write_bytes(raw + b"\0")
    with pytest.raises(Damaged):
        read_file(tmp_path / "a", sha256)

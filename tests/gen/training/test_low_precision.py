"""Training in float8: refused where the machine lacks it, and with emulated products as good as bf16."""

import json

import pytest
import torch
from safetensors.torch import load_file

from gen import load
from gen.config.errors import UserError
from gen.training.low_precision import to_float8
from gen.training.trainer import train
from tests.gen.tiny import tiny


def records(folder, split):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


@pytest.fixture
def emulated(monkeypatch):
    """A machine that seems to have float8; the products are emulated."""
    monkeypatch.setattr("gen.training.distributed.float8_obstacle", lambda device: None)


def test_fp8_is_refused_in_one_line_and_the_folder_is_free(tmp_path):
    needs = r"precision fp8: products in float8 need a GPU .* the device is cpu; allowed: no, bf16"
    with pytest.raises(UserError, match=needs):
        train(tiny(precision="fp8"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "run.json").exists()


def test_emulated_fp8_learns_as_bf16_does_and_is_saved_plain(tmp_path, emulated):
    losses = {}
    for precision in ("no", "bf16", "fp8"):
        train(tiny(steps=15, precision=precision), tmp_path / precision, quiet=True)
        losses[precision] = torch.tensor([line["loss"] for line in records(tmp_path / precision, "train")])
    assert not torch.equal(losses["fp8"], losses["bf16"])
    assert float((losses["fp8"] / losses["no"] - 1).abs().max()) < 2e-3
    ours, plain = (load(tmp_path / name).denoiser.net for name in ("fp8", "no"))
    assert type(ours.blocks[0].mlp.fc1) is torch.nn.Linear and ours.state_dict().keys() == plain.state_dict().keys()
    assert {value.dtype for value in ours.state_dict().values()} == {torch.float32}


def test_emulated_fp8_resumes_to_the_bit(tmp_path, emulated):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run = {"precision": "fp8", "fused": True, "micro_batch_size": 4, "gradient_checkpointing": True}
    train(tiny(**run), whole, quiet=True)
    train(tiny(steps=3, **run), parts, quiet=True)
    train(tiny(**run), parts, quiet=True)
    for name in ("net.safetensors", "net-ema.safetensors", "state/net.safetensors"):
        ours, theirs = (load_file(folder / "checkpoints/step-0000006" / name) for folder in (parts, whole))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_layers_outside_of_blocks_stay():
    net = tiny().model.build()
    before = dict(net.named_parameters())
    to_float8([net], torch.device("cpu"))
    changed = {name for name, module in net.named_modules() if type(module).__name__ == "Float8Linear"}
    assert changed == {"blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2"}
    assert all(parameter is before[name] for name, parameter in net.named_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "energy", "inner": tiny().model}}, "fp8 has no second derivative, and EnergyNet"),
        ({"model": {"name": "unet", "preset": "digits"}}, "UNetNet has no linear layers in its blocks"),
        (
            {"model": {"name": "flow_map", "inner": tiny().model}, "objective": "meanflow"},
            "derivative jvp differen",
        ),
    ],
)
def test_refusals(tmp_path, emulated, changes, message):
    with pytest.raises(UserError, match=message):
        train(tiny(precision="fp8", **changes), tmp_path / "run", quiet=True)

"""Folders of pipelines: the same pictures as the object, and nothing in them is run or unpickled."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import gen
from gen.config.errors import UserError
from tests.pipelines.tiny import prompted, with_text_encoder

GIVEN = {key: value for key, value in prompted("sd15").items() if key not in ("generator", "output_type")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("pipelines") / "fox"
    with_text_encoder("sd15").save_pretrained(where)
    return where


def test_a_folder_samples_as_its_pipeline(folder, capfd):
    model = gen.load_diffusers(folder, **GIVEN)
    expected = gen.load_diffusers(with_text_encoder("sd15"), **GIVEN).sample("a red fox")
    torch.testing.assert_close(model.sample("a red fox").x, expected.x, rtol=1e-4, atol=1e-5)
    assert model.name == "fox" and capfd.readouterr().err == ""
    half = gen.load_diffusers(folder, dtype="bfloat16", **GIVEN)
    assert half.pipe.unet.dtype == torch.bfloat16 and "bfloat16" in repr(half)
    samples = half.sample("a red fox")
    assert samples.x.dtype == torch.float32 and (samples.x - expected.x).abs().mean() < 0.2
    with pytest.raises(UserError, match=r"by gen\.load_diffusers"):
        gen.load(folder)


def test_conditions_are_encoded_once_and_kept_in_a_folder(folder, tmp_path):
    model = gen.load_diffusers(folder, store=tmp_path / "conditions", **GIVEN)
    calls = []
    encoder = model.pipe.text_encoder
    encoder.register_forward_hook(lambda *given: calls.append(1))
    words = ["a fox", "a dog", "a fox"]
    cond = model.pipeline.encode_prompts(words)
    assert len(list((tmp_path / "conditions").iterdir())) == 2
    assert torch.equal(cond["encoder_hidden_states"][0], cond["encoder_hidden_states"][2])
    again = gen.load_diffusers(folder, store=tmp_path / "conditions", **GIVEN).pipeline.encode_prompts(words)
    assert all(torch.equal(cond[key], again[key]) and cond[key].dtype == again[key].dtype for key in cond)
    count = len(calls)
    model.pipeline.encode_prompts(["a dog"])
    assert len(calls) == count
    file = min((tmp_path / "conditions").iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    fresh = gen.load_diffusers(folder, store=tmp_path / "conditions", **GIVEN).pipeline.encode_prompts(words)
    assert all(torch.equal(cond[key], fresh[key]) for key in cond)
    other = gen.load_diffusers(folder, store=tmp_path / "conditions", **GIVEN, negative_prompt="a cat")
    assert not torch.equal(
        other.pipeline.encode_prompts(words)["null.encoder_hidden_states"], cond["null.encoder_hidden_states"]
    )


def test_weights_saved_as_a_variant_are_read(tmp_path):
    with_text_encoder("sd15").save_pretrained(tmp_path / "half", variant="fp16")
    assert (tmp_path / "half/unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    assert gen.load_diffusers(tmp_path / "half", **GIVEN).sample("a fox", steps=1).x.isfinite().all()


def changed(folder, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    index = json.loads((copy / "model_index.json").read_text())
    change(copy, index)
    (copy / "model_index.json").write_text(json.dumps(index))
    return copy


CHANGES = {
    "code at the root": (lambda copy, index: (copy / "None.py").write_text("1 / 0"), "None.py is code"),
    "code of a part": (lambda copy, index: (copy / "unet/diffusers.py").write_text("1 / 0"), "diffusers.py is code"),
    "another package": (lambda copy, index: index.update(unet=["my_pkg", "Net"]), "its unet is .*my_pkg"),
    "another class": (lambda copy, index: index.update(_class_name="MyPipeline"), "MyPipeline.* is no pipeline"),
    "code by class": (lambda copy, index: index.update(_class_name=["mine", "My"]), "is no pipeline of diffusers"),
    "a pickle": (
        lambda copy, index: (copy / "unet/diffusion_pytorch_model.safetensors").rename(copy / "unet/model.bin"),
        "model.bin is no safetensors file",
    ),
    "no weights": (
        lambda copy, index: (copy / "unet/diffusion_pytorch_model.safetensors").unlink(), "diffusers cannot load it",
    ),
    "no index": (lambda copy, index: index.clear(), "its class None is no pipeline"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_folder_would_run_is_refused(folder, tmp_path, change):
    how, message = CHANGES[change]
    copy = changed(folder, tmp_path, how)
    with pytest.raises(UserError, match=message) as error:
        gen.load_diffusers(copy)
    assert "\n" not in str(error.value)

"""UNet2DModel folders of diffusers: the same network, and DDPMPipeline's own loop."""

from __future__ import annotations

import json

import diffusers
import pytest
import torch

import gen
from gen.config.errors import UserError
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.parameterisation import Eps, V
from gen.diffusion.path import DDPM
from gen.models.interop.checkpoints import import_checkpoint

SIZES = {
    "sample_size": 8, "block_out_channels": (8, 16), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "norm_num_groups": 4, "layers_per_block": 1,
}  # fmt: skip
CIFAR = {
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
VARIANTS = {
    "cifar": CIFAR,
    "defaults": {},
    "classes": {"num_class_embeds": 5, "out_channels": 6, "layers_per_block": 2, "attention_head_dim": 4},
    "three-levels": {
        "block_out_channels": (8, 8, 16), "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    },
}  # fmt: skip


def theirs(**changes):
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(**{**SIZES, **changes})
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_an_imported_folder_computes_what_diffusers_does(tmp_path, name):
    model = theirs(**VARIANTS[name])
    model.save_pretrained(tmp_path / "x" / "unet")
    diffusers.DDIMScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "x" / "scheduler")
    done = import_checkpoint(tmp_path / "x", out=tmp_path / "a")
    assert (done.origin, done.run.path, done.run.parameterisation) == ("unet2d", DDPM(), V())
    pipeline = gen.load(tmp_path / "a")
    g = torch.Generator().manual_seed(1)
    x, t = torch.randn(3, 3, 8, 8, generator=g, dtype=torch.float64), torch.tensor([0.0, 17.0, 999.0]).double()
    cond = {"y": torch.tensor([0, 3, 4])} if pipeline.classes else {}
    exact = model.double()(x, t, **({"class_labels": cond["y"]} if cond else {})).sample[:, :3]
    ours = pipeline.denoiser.net.double()(x, t, cond)
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)  # its waves are float32


def test_old_names_of_attention_are_read_too(tmp_path):
    """google/ddpm-cifar10-32 was saved before to_q was called so, with its scheduler beside it."""
    model = theirs(**CIFAR)
    model.save_pretrained(tmp_path / "x")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in model.state_dict().items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        state[key] = value
    torch.save(state, tmp_path / "x" / "diffusion_pytorch_model.bin")
    (tmp_path / "x" / "diffusion_pytorch_model.safetensors").unlink()
    diffusers.DDPMScheduler(variance_type="fixed_large").save_pretrained(tmp_path / "x")
    done = import_checkpoint(tmp_path / "x", out=tmp_path / "a")
    assert (done.run.sampler.solver.variance, done.run.sampler.solver.clip, done.run.sampler.steps) == (
        "beta",
        True,
        1000,
    )
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        ours = gen.load(tmp_path / "a").denoiser.net(x, torch.tensor([5.0]), {})
        torch.testing.assert_close(ours, model(x, 5).sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_it_is_sampled_as_ddpm_pipeline_does(tmp_path, monkeypatch, variance):
    model, scheduler = theirs(**CIFAR), diffusers.DDPMScheduler(variance_type=variance)
    diffusers.DDPMPipeline(model, scheduler).save_pretrained(tmp_path / "x")
    import_checkpoint(tmp_path / "x", out=tmp_path / "a")
    pipeline, noise = gen.load(tmp_path / "a"), Noise(tuple(sample_seeds(0, 2)))
    assert pipeline.denoiser.parameterisation == Eps()
    ours = pipeline.sample(2, steps=10).x
    draws = [noise.normal(name, (3, 8, 8)) for name in ("start", *range(9))]
    monkeypatch.setattr("diffusers.pipelines.ddpm.pipeline_ddpm.randn_tensor", lambda *_, **__: draws.pop(0))
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: draws.pop(0))
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path / "x")
    pipe.set_progress_bar_config(disable=True)
    images = pipe(2, num_inference_steps=10, output_type="pt", return_dict=False)[0]
    exact = torch.as_tensor(images) * 2 - 1
    assert not draws and float((ours.clamp(-1, 1) - exact).norm() / exact.norm()) < 1e-3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"act_fn": "gelu"}, "act_fn is 'gelu'; allowed here: silu, swish"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift is 'scale_shift'"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, "allowed: DownBlock2D, AttnDownBlock2D"),
        ({"sample_size": [8, 4]}, "sample_size"),
        ({"_class_name": "UNet2DConditionModel"}, "is of 'UNet2DConditionModel'; allowed: UNet2DModel"),
    ],
)
def test_what_ours_cannot_be_is_one_line(tmp_path, changes, said):
    theirs().save_pretrained(tmp_path / "x")
    file = tmp_path / "x" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(UserError, match=said):
        import_checkpoint(tmp_path / "x", "unet2d", out=tmp_path / "a")
    assert not (tmp_path / "a").exists()

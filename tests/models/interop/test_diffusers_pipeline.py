"""An exported DiT with its autoencoder: DiTPipeline loads the folder whole and makes the same pictures."""

from __future__ import annotations

import json
from dataclasses import replace

import diffusers
import pytest
import torch

import gen
from gen.cli import main
from gen.config import checkpoints
from gen.config.errors import UserError
from gen.diffusion.noise import Noise, sample_seeds
from gen.diffusion.parameterisation import Eps, V, Velocity
from gen.diffusion.path import DDPM, VP, Flow
from gen.models.interop.checkpoints import import_checkpoint
from gen.models.interop.diffusers_export import export
from gen.training.run import Run, Sampler, run_spec
from tests.models.interop.test_diffusers_folders import OURS

FLOW = replace(OURS, time_scale=1000.0, learn_sigma=False)
GUIDE = {"name": "cfg", "scale": 2.0}


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    torch.manual_seed(0)
    net = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=16, scaling_factor=0.5,
    )  # fmt: skip
    net.save_pretrained(tmp_path_factory.mktemp("vae"))
    return tmp_path_factory.getbasetemp() / "vae0"


def run_folder(folder, spec, path, param, latent, sampler, **more):
    torch.manual_seed(0)
    net = spec.build()
    for weight in net.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    about = {"role": "net", "step": 0, "shape": [4, 8, 8], "classes": spec.classes, "latent": latent, **more}
    run = run_spec(Run(model=spec, path=path, parameterisation=param, ema=(), sampler=sampler))
    checkpoints.write(folder, {"net.safetensors": net.state_dict()}, {"run": run, **about})


@pytest.mark.parametrize(
    ("spec", "path", "param", "sampler"),
    [
        (OURS, DDPM(), Eps(), Sampler("ddim", 10, {"name": "timesteps", "spacing": "leading", "offset": 1}, GUIDE)),
        (OURS, DDPM(), V(), Sampler("ddim", 8, {"name": "timesteps", "spacing": "trailing"})),
        (OURS, DDPM(), Eps(), Sampler("euler", 10, "linear", GUIDE)),
        (FLOW, Flow(), Velocity(), Sampler("euler", 6, {"name": "shift", "shift": 3.0}, GUIDE)),
        (FLOW, Flow(), Velocity(), Sampler("euler", 6)),
    ],
    ids=["leading", "trailing", "even", "flow-shifted", "flow"],
)
def test_the_whole_folder_makes_the_same_pictures(tmp_path, monkeypatch, vae, spec, path, param, sampler):
    run_folder(tmp_path / "run", spec, path, param, {"scale": 0.7, "shift": 0.0}, sampler)
    export(tmp_path / "run", tmp_path / "x", autoencoder=vae)
    pipe = diffusers.DiTPipeline.from_pretrained(tmp_path / "x")
    pipe.set_progress_bar_config(disable=True)
    ours = gen.load(tmp_path / "run")
    expected = ours.decoded(ours.sample(2, cond=[3, 7]), vae).x
    noise = Noise(tuple(sample_seeds(0, 2))).normal("start", (4, 8, 8))
    monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda **_: noise)
    scale = 1.0 if sampler.guide is None else sampler.guide.scale
    given = {"guidance_scale": scale, "num_inference_steps": sampler.steps, "output_type": "pt"}
    theirs = pipe([3, 7], **given).images * 2 - 1
    exact = expected.clamp(-1, 1)
    assert float((theirs - exact).norm() / exact.norm()) < 1e-3
    assert pipe.labels == {str(i): i for i in range(spec.classes)}
    assert (
        f"guidance_scale={scale:g}, num_inference_steps={sampler.steps}" in (tmp_path / "x" / "README.md").read_text()
    )


def test_it_comes_back_as_it_was(tmp_path, vae, capsys):
    """The label table, of which DiTPipeline wants 1001 rows, has its own number again."""
    names = [f"kind of {i}" for i in range(FLOW.classes)]
    latent, plan = {"scale": 0.7, "shift": 0.0}, Sampler("euler", 4)
    run_folder(tmp_path / "run", FLOW, Flow(), Velocity(), latent, plan, labels=names)
    words = ["export", str(tmp_path / "run"), "--to", "diffusers", "--out", str(tmp_path / "x")]
    assert main([*words, "--autoencoder", str(vae)]) == 0
    assert "DiTPipeline.from_pretrained" in capsys.readouterr().out
    labels = json.loads((tmp_path / "x" / "model_index.json").read_text())["id2label"]
    assert labels == {str(i): name for i, name in enumerate(names)}
    done = import_checkpoint(tmp_path / "x", out=tmp_path / "again")
    assert done.run.model == FLOW
    net, again = (gen.load(tmp_path / name).denoiser.net.state_dict() for name in ("run", "again"))
    assert all(torch.equal(again[name], value) for name, value in net.items())


@pytest.mark.parametrize(
    ("spec", "path", "param", "latent", "said"),
    [
        (FLOW, Flow(), Velocity(), {"scale": [1.0, 2.0, 3.0, 4.0], "shift": 0.0}, "knows one scale and no shift"),
        (FLOW, Flow(), Velocity(), {"scale": 1.0, "shift": 0.5}, "knows one scale and no shift"),
        (FLOW, Flow(), Velocity(), {"scale": 1.0, "shift": 0.0, "image_range": [0, 1]}, r"are in \[0, 1\]"),
        (OURS, VP(), V(), {"scale": 1.0, "shift": 0.0}, "diffusers has no scheduler for VP"),
        (FLOW, Flow(), Velocity(), {}, "images already"),
    ],
    ids=["channels", "shift", "range", "scheduler", "pixels"],
)
def test_what_a_dit_pipeline_cannot_be_is_one_line(tmp_path, vae, spec, path, param, latent, said):
    run_folder(tmp_path / "run", spec, path, param, latent, Sampler("euler", 4))
    with pytest.raises(UserError, match=said):
        export(tmp_path / "run", tmp_path / "x", autoencoder=vae)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    with pytest.raises(UserError):
        export(tmp_path / "run", tmp_path / "x", autoencoder=other)
    assert not (tmp_path / "x").exists()

"""Samples that are no pictures are never clamped into pixels: latents, points, other channels; or they are decoded."""

import json
import shlex

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from gen.cli import main
from gen.config.errors import UserError
from gen.data.latents import Latents
from gen.data.mixture import MixturePoints
from gen.data.npz import Npz
from gen.diffusion.path import Flow
from gen.eval.evaluate import evaluate
from gen.eval.reference import Reference
from gen.eval.sources import collect
from gen.pipeline import Pipeline, load
from gen.samples import Samples
from gen.training.trainer import train
from tests.gen.tiny import tiny


def latent_run(folder, channels):
    """A run on latents far outside [-1, 1]."""
    x = 5 * torch.randn(20, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    save_file({"latents": x, "labels": torch.arange(20) % 2}, folder / "latents.safetensors")
    model = tiny().model.__class__(size=8, patch=4, channels=channels, classes=2, width=16, depth=1, heads=2)
    data = Latents(str(folder / "latents.safetensors"), scale=0.5)
    run = tiny(model=model, data=data, steps=1, validate_every=0, sample_every=1)
    return train(run, folder / "run", quiet=True).folder


@pytest.fixture(scope="module", params=[3, 4])  # those of three channels look like pictures
def latents(request, tmp_path_factory):
    return latent_run(tmp_path_factory.mktemp("latents"), request.param)


@pytest.fixture
def never(monkeypatch):
    """No sampling takes place."""
    monkeypatch.setattr(Pipeline, "sample", lambda *args, **how: pytest.fail("it was sampled"))


def test_latents_are_no_pixels(latents, tmp_path):
    samples = load(latents).sample(4, steps=1)
    for use in (lambda: samples.uint8(), lambda: samples.images, lambda: samples.sheet()):
        with pytest.raises(UserError, match="no pictures"):
            use()
    assert samples._repr_png_() is None
    assert not (latents / "samples").exists()


def test_nothing_is_sampled_in_vain(latents, tmp_path, never, capsys):
    npz = tmp_path / "ref.npz"
    np.savez(npz, np.zeros((8, 8, 8, 3), np.uint8))
    data = json.dumps({"name": "npz", "path": str(npz)})
    search = ["search", str(latents), "--fitness", "fid", "--steps", "2", "--out", str(tmp_path / "g.json")]
    for words in (
        ["sample", str(latents), "--out", str(tmp_path / "s.npz")],
        ["evaluate", str(latents), "--against", data],
        ["evaluate", str(latents)],
        [*search, "--data", data],
    ):
        assert main(words) == 2
        assert "no pictures" in capsys.readouterr().err
    for source in (Latents(str(latents.parent / "latents.safetensors")), MixturePoints(), MixturePoints(dim=1)):
        with pytest.raises(UserError, match="latents or other tensors, no pictures: give the real pictures"):
            Reference.open(source, "test", "pixels")


def test_other_samples_are_no_pixels():
    for shape in ((2, 1, 1), (4, 8, 8), (8, 8)):
        with pytest.raises(UserError, match="no pictures"):
            Samples(torch.zeros(3, *shape), {}, 1.0, 0.0).uint8()
    assert Samples(torch.zeros(3, 3, 8, 8), {}, 1.0, 0.0).uint8().shape == (3, 3, 8, 8)
    world, run = MixturePoints().world(Flow()), {"data": {"name": "mixture", "dim": 1}}
    assert "no pictures" in Pipeline(world, (1, 1, 1), info={"run": run}).no_pictures
    assert "no pictures" in Pipeline(world, (3, 8, 8), info={"latent": {"scale": 0.2}}).no_pictures
    assert not Pipeline(world, (3, 8, 8), info={"run": {"data": {"name": "digits"}}}).no_pictures


def test_an_autoencoder_makes_pictures_of_latents(tmp_path, monkeypatch):
    torch.manual_seed(0)
    latents, vae, npz = latent_run(tmp_path, 4), tmp_path / "vae", tmp_path / "ref.npz"
    AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=16,
    ).save_pretrained(vae)  # fmt: skip
    np.savez(npz, np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    how = {"against": {"name": "npz", "path": "ref.npz"}, "n": 12, "steps": 1, "seconds": 0.01, "metrics": ["kid"]}
    record = evaluate("run", **how, autoencoder="vae")
    assert record.reference.shape == (3, 16, 16) and record.sampler["autoencoder"]["name"] == "diffusers"
    pipeline = load("run")
    samples = pipeline.decoded(pipeline.sample(12, steps=1), vae)
    assert samples.uint8().shape == (12, 3, 16, 16)
    (file,) = (latents / "eval").glob("*.json")
    file.unlink()
    monkeypatch.chdir("/")
    assert main(shlex.split(record.command)[1:]) == 0
    (again,) = collect(latents)
    assert again.metrics == record.metrics and again.identity == record.identity


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 8, 8, 4), np.uint8),  # colour and alpha
        np.zeros((4, 8, 8, 2), np.uint8),  # grey and alpha
        np.zeros((4, 8, 8, 5), np.uint8),
        np.zeros((4, 8, 8), np.uint8),
        np.zeros((4, 8, 8, 3), np.uint16),
        np.zeros((4, 8, 8, 3), np.float32),
    ],
    ids=lambda a: f"{a.dtype}-{a.ndim}-{a.shape[-1]}",
)
def test_a_file_of_anything_but_bytes_of_grey_or_colour_is_refused(tmp_path, array):
    np.savez(tmp_path / "odd.npz", array)
    with pytest.raises(UserError, match=r"allowed: uint8 \[N, H, W, C\], C = 1 or 3"):
        Npz(str(tmp_path / "odd.npz")).open("train")

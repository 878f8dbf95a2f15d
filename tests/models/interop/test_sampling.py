"""How imported models are sampled, and how their latents become images: what the weights themselves do not say."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest
import torch

import gen
from gen.cli.sample import add_sampler_options, sampler_options
from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.path import DDPM, EDM, Flow
from gen.models.interop.checkpoints import import_checkpoint
from gen.samplers.guides.cfg import CFG
from tests.models.interop import published
from tests.models.interop.test_checkpoints import imported


@pytest.mark.parametrize(
    ("origin", "solver", "steps"),
    [
        ("dit", "ddim", 250),
        ("sit", "rk4", 62),
        ("repa", {"name": "sit_sde", "last": "mean"}, 250),
        ("reg", {"name": "sit_sde", "last": "mean"}, 250),
        ("lightning_dit", "euler", 249),
        ("ddt", "euler", 250),
        ("rae", "euler", 49),
        ("edm2", "heun", 32),
    ],
)
def test_they_are_sampled_as_published(tmp_path, origin, solver, steps):
    sampler = imported(tmp_path, origin)[1].sampler
    assert (sampler.solver, sampler.steps) == (build("samplers.solvers", solver), steps)
    even, grid = torch.linspace(0, 1, 5, dtype=torch.float64), sampler.grid
    if origin == "dit":  # every fourth entry of the table, from the last to the first
        assert grid.times(DDPM(), 4).tolist() == [1000, 667, 334, 1, 0]
    elif origin == "edm2":
        ramp = (80 ** (1 / 7) + torch.arange(4) / 3 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        torch.testing.assert_close(grid.times(EDM(), 4)[:4], ramp.double(), rtol=1e-5, atol=0)
    elif origin == "lightning_dit":  # there from noise at 0 to data at 1
        torch.testing.assert_close(grid.times(Flow(), 4), 1 - 0.3 * even / (1 - 0.7 * even))
    elif origin == "sit":
        torch.testing.assert_close(grid.times(Flow(), 4), 1 - even)
    elif origin == "rae":  # whose few numbers here are not shifted
        torch.testing.assert_close(grid.times(Flow(), 4), 1 - 0.999 * even)
    else:
        assert grid.times(Flow(), 4).tolist() == pytest.approx([1, 0.68, 0.36, 0.04, 0])


@pytest.mark.parametrize("origin", ["dit", "sit", "repa", "lightning_dit", "rae"])
def test_another_scale_keeps_the_other_fields_of_the_guide(tmp_path, origin):
    """--guidance-scale 4 guided all channels everywhere: DiT .046, LightningDiT .34 off the published rule."""
    pipeline = imported(tmp_path, origin)[1]
    parser = argparse.ArgumentParser()
    add_sampler_options(parser)
    options = sampler_options(parser.parse_args(["--guidance-scale", "4"]), pipeline)
    own = pipeline.sampler.guide
    assert pipeline.plan(**options).guide == (CFG(4.0) if own is None else replace(own, scale=4.0))


@pytest.mark.parametrize("origin", ["dit", "sit", "repa", "reg", "ddt"])
def test_the_scale_of_latents_is_the_autoencoders(tmp_path, origin):
    latent = imported(tmp_path, origin)[1].info["latent"]
    assert (latent["scale"], latent["shift"]) == (0.18215, 0.0)


def test_latents_of_edm2_have_half_the_deviation_and_no_mean(tmp_path):
    """Theirs: x = z (0.5 / std) - mean (0.5 / std), by channel."""
    latent = imported(tmp_path, "edm2")[1].info["latent"]
    mean, std = torch.tensor([5.81, 3.25, 0.12, -2.15]), torch.tensor([4.17, 4.62, 3.71, 3.28])
    z = torch.randn(7, 4)
    x = z * (0.5 / std) - mean * (0.5 / std)
    torch.testing.assert_close(x / torch.tensor(latent["scale"]) + torch.tensor(latent["shift"]), z)


@pytest.mark.parametrize(("origin", "expected"), [("edm2", [0.0, 1.0]), ("rae", [0.0, 1.0]), ("dit", None)])
def test_the_range_of_images_is_the_origins(tmp_path, origin, expected):
    assert imported(tmp_path, origin)[1].info["latent"].get("image_range") == expected


def test_latents_of_lightning_dit_are_decoded_with_its_statistics(tmp_path):
    """It decodes samples * std + mean; without the file the manifest can only say where they stand."""
    torch.save(published.lightning_dit(), tmp_path / "a.pt")
    mean, std = torch.randn(1, 4, 1, 1), torch.rand(1, 4, 1, 1) + 0.5
    torch.save({"mean": mean, "std": std}, tmp_path / "stats.pt")
    spec = {"name": "lightning_dit", "stats": str(tmp_path / "stats.pt")}
    import_checkpoint(tmp_path / "a.pt", spec, out=tmp_path / "a")
    pipeline = gen.load(tmp_path / "a")
    samples = pipeline.sample(2, steps=1)

    class Coder:
        def decode(self, z):
            return z

    torch.testing.assert_close(pipeline.decoded(samples, Coder()).x, samples.x * std + mean, rtol=1e-4, atol=1e-4)
    for content, said in (({"mean": mean}, "mean and std of 4"), ({"mean": mean, "std": 0 * std}, "not positive")):
        torch.save(content, tmp_path / "stats.pt")
        with pytest.raises(UserError, match=said):
            import_checkpoint(tmp_path / "a.pt", spec, out=tmp_path / "b")


class Identity:
    """An autoencoder of latents that are their own pictures."""

    image_range = None

    def decode(self, z):
        return z


def test_statistics_of_every_position_are_read_and_decode_rae_s_latents(tmp_path):
    """They were only named in the manifest, since it has one number for a channel at most."""
    torch.save(published.rae(), tmp_path / "a.pt")
    shape = gen.load(import_checkpoint(tmp_path / "a.pt", out=tmp_path / "plain").folder).shape
    g = torch.Generator().manual_seed(0)
    mean, var = torch.randn(shape, generator=g), torch.rand(shape, generator=g)
    torch.save({"mean": mean, "var": var}, tmp_path / "stat.pt")
    spec = {"name": "rae", "stats": str(tmp_path / "stat.pt")}
    pipeline = gen.load(import_checkpoint(tmp_path / "a.pt", spec, out=tmp_path / "out").folder)
    samples = pipeline.sample(2, steps=2)
    decoded = pipeline.decoded(samples, Identity())
    torch.testing.assert_close(decoded.x, samples.x * (var + 1e-5).sqrt() + mean)
    with pytest.raises(UserError, match="not known, only where it stands"):
        gen.load(tmp_path / "plain").decoded(samples, Identity())
    for wrong in ({"mean": mean}, {"mean": mean, "var": -var - 1}, {"mean": mean[:1], "var": var[:1]}):
        torch.save(wrong, tmp_path / "stat.pt")
        with pytest.raises(UserError, match=r"stats: .*holds? "):
            import_checkpoint(tmp_path / "a.pt", spec, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()

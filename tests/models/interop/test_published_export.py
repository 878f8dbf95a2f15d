"""Export to published formats: read back it is the same model to the bit, or one line says what the format lacks."""

from __future__ import annotations

import shlex

import pytest
import torch

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import names, override
from gen.diffusion.parameterisation import Eps, Velocity
from gen.diffusion.path import DDPM, Flow
from gen.models.interop.checkpoints import import_checkpoint
from gen.models.interop.published_export import export_published
from tests.models.interop import published
from tests.models.interop.test_checkpoints import DDT, EDM2, ORIGINS, imported
from tests.models.interop.test_diffusers_folders import OURS, run_folder


@pytest.mark.parametrize(("origin", "suffix"), [*((name, ".pt") for name in ORIGINS), ("sit", ".safetensors")])
def test_out_and_in_again_is_the_same_model_to_the_bit(tmp_path, capsys, origin, suffix):
    done, pipeline = imported(tmp_path, origin)
    file = tmp_path / f"out{suffix}"
    assert main(["export", str(done.folder), "--to", origin, "--out", str(file)]) == 0
    said = capsys.readouterr().out.split(": ", 1)[1]
    assert main([*shlex.split(said)[1:], "--out", str(tmp_path / "again")]) == 0
    again = gen.load(tmp_path / "again")
    assert again.denoiser.net.spec == pipeline.denoiser.net.spec and again.sampler == pipeline.sampler
    assert (again.denoiser.path, again.denoiser.parameterisation) == (
        pipeline.denoiser.path,
        pipeline.denoiser.parameterisation,
    )
    theirs, ours = again.denoiser.net.state_dict(), pipeline.denoiser.net.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], value) for name, value in ours.items())
    if suffix == ".pt" and origin == "ddt":
        content = torch.load(file, weights_only=True)
        assert all(name.startswith("ema_denoiser.") for name in content["state_dict"])


@pytest.mark.parametrize(
    ("spec", "path", "param", "origin", "said"),
    [
        ({"time_scale": 1000.0}, DDPM(), Eps(), "dit", r"does not say time_scale 1000.0 \(there 1.0\), freq_shift 1"),
        ({"freq_shift": 0}, Flow(), Velocity("data"), "sit", "does not say time_convention 'noise'"),
        ({"freq_shift": 0}, Flow(), Velocity(), "dit", r"does not say path .*'flow'.*ddpm"),
        ({}, DDPM(), Eps(), "edm2", "a DiT, cannot be a file of edm2: "),
        *(({"classes": 0}, DDPM(), Eps(), name, f"file of {name}: it has no labels") for name in ("dit", "sit")),
        ({}, DDPM(), Eps(), "diffuzers", "no file of 'diffuzers' can be written; allowed: diffusers, "),
    ],
)
def test_what_a_format_cannot_say_is_one_line(tmp_path, spec, path, param, origin, said):
    run_folder(tmp_path / "run", override(OURS, spec), path, param)
    with pytest.raises(UserError, match=said):
        export_published(tmp_path / "run", tmp_path / "x.pt", origin)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_a_model_of_another_kind_is_refused_by_every_origin(tmp_path):
    run_folder(tmp_path / "run", OURS, DDPM(), Eps())
    for origin in (name for name in names("models.interop.public") if name != "dit"):
        with pytest.raises(UserError):
            export_published(tmp_path / "run", tmp_path / "x.pt", origin)


def test_files_that_exist_and_options_of_diffusers_are_refused(tmp_path, capsys):
    run_folder(tmp_path / "run", OURS, DDPM(), Eps())
    (tmp_path / "x.pt").write_text("kept")
    with pytest.raises(UserError, match="give a new file that ends in"):
        export_published(tmp_path / "run", tmp_path / "x.pt", "dit")
    assert main(["export", str(tmp_path / "run"), "--to", "dit", "--patched", "--out", str(tmp_path / "y.pt")]) == 2
    assert "are for --to diffusers" in capsys.readouterr().err


def test_a_repa_without_projectors_is_a_repa_where_it_is_named(tmp_path):
    """Its conventions are in no tensor: the name says them."""
    torch.save(published.repa(), tmp_path / "a.pt")
    import_checkpoint(tmp_path / "a.pt", "repa", out=tmp_path / "a")
    export_published(tmp_path / "a", tmp_path / "b.pt", "repa")
    with pytest.raises(UserError, match="cannot be a file of sit, which does not say"):
        export_published(tmp_path / "a", tmp_path / "c.pt", "sit")
    assert {DDT["name"], EDM2["name"]} <= set(ORIGINS)

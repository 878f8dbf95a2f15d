"""LDM's and VA-VAE's autoencoders: their files, their sizes, and the same numbers as their formulas."""

import importlib
import json
import shutil

import pytest
import torch

from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import build
from gen.diffusion.autoencoder import CODEBOOK
from gen.diffusion.tap import FeatureRecorder
from gen.models.autoencoders.dc import DC
from gen.models.autoencoders.kl import KL
from gen.models.autoencoders.lib.ldm import ldm_config, to_diffusers, to_ldm
from gen.models.autoencoders.vq import VQ
from gen.models.interop.checkpoints import import_checkpoint
from tests.models.interop.published_autoencoders import LDM, ldm, ldm_shapes

diffusers = importlib.import_module("diffusers")


def test_published_sizes():
    """Stable Diffusion's, VA-VAE's and ResShift's to the unit, and SANA's DC-AE; and VA-VAE's 342 tensors."""
    counts = {
        (KL, "f8d4"): (83_653_863, 248),
        (KL, "f16d32"): (69_836_067, 342),
        (VQ, "f4"): (55_322_782, 205),
        (DC, "f32c32-sana"): (312_250_275, 375),
    }
    for (owner, preset), expected in counts.items():
        with torch.device("meta"):
            net = owner.preset(preset).build()
        assert (sum(p.numel() for p in net.parameters()), len(net.state_dict())) == expected
        if preset == "f16d32":
            sides = [sum(p.numel() for p in side.parameters()) for side in (net.net.encoder, net.net.decoder)]
            assert sides == [28_413_248, 41_417_603]


@torch.no_grad()
@pytest.mark.parametrize("vectors", [None, 16])
def test_a_file_of_ldm_or_va_vae_is_imported_whole(tmp_path, vectors, capsys):
    """The numbers are those of LDM's formulas; what VA-VAE trains beside it is left out, by name."""
    state = ldm(vectors=vectors)
    beside = {"loss.discriminator.main.0.weight": torch.zeros(2), "foundation_model.model.norm.bias": torch.zeros(2)}
    torch.save({"state_dict": {**state, **beside}, "global_step": 3}, tmp_path / "vavae.pt")
    assert main(["import", str(tmp_path / "vavae.pt"), "--out", str(tmp_path / "run")]) == 0
    report = capsys.readouterr().out
    assert f"{len(state)} tensors" in report and "left out   2 tensors" in report and "gen encode DATA" in report
    net = build("models.autoencoders", {"name": "trained", "folder": str(tmp_path / "run")}).load().double()
    reference, x = LDM(state), torch.rand(2, 3, 16, 24, dtype=torch.float64) * 2 - 1
    moments = net.encode(x).moments
    torch.testing.assert_close(moments, reference.encode(x), rtol=1e-10, atol=1e-10)
    z = moments[:, :3]
    nearest = state["quantize.embedding.weight"].double() if vectors else None
    if nearest is not None:
        flat = z.movedim(1, -1)
        z = nearest[(flat[..., None, :] - nearest).square().sum(-1).argmin(-1)].movedim(-1, 1)
    torch.testing.assert_close(net.decode(moments[:, :3]), reference.decode(z), rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_it_goes_to_diffusers_and_back_to_ldm_to_the_bit(tmp_path):
    for vectors, owner in ((None, "AutoencoderKL"), (16, "VQModel")):
        at = tmp_path / owner
        at.mkdir()
        state = ldm(vectors=vectors)
        torch.save(state, at / "a.ckpt")
        import_checkpoint(at / "a.ckpt", "ldm_autoencoder", out=at / "run")
        assert main(["export", str(at / "run"), "--to", "diffusers", "--out", str(at / "folder")]) == 0
        theirs = getattr(diffusers, owner).from_pretrained(at / "folder").double()
        ours = build("models.autoencoders", {"name": "trained", "folder": str(at / "run")}).load().double()
        x = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
        coded = theirs.encode(x)
        z = coded.latents if vectors else coded.latent_dist.mean
        assert torch.equal(ours.encode(x).mean, z)
        torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample, rtol=1e-12, atol=1e-12)
        assert main(["export", str(at / "run"), "--to", "ldm_autoencoder", "--out", str(at / "back.pt")]) == 0
        back = torch.load(at / "back.pt", weights_only=True)["state_dict"]
        assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
        # a folder of diffusers is an autoencoder as it is
        coder = build("models.autoencoders", {"name": "diffusers", "folder": str(at / "folder")}).load()
        torch.testing.assert_close(coder.encode(x.float()).mean.double(), z, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_a_folder_of_diffusers_is_trained_on_with_its_scale(tmp_path):
    """kl, without 1 x 1 convolutions as FLUX's, vq and dc: the same numbers, to the bit, and the config comes back."""
    small = {
        "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), "norm_num_groups": 4, "sample_size": 16,
    }  # fmt: skip
    joined = {"use_quant_conv": False, "use_post_quant_conv": False}
    cases = {
        "AutoencoderKL": {**small, **joined, "latent_channels": 4, "scaling_factor": 0.25, "shift_factor": 0.5},
        "VQModel": {**small, "num_vq_embeddings": 16, "scaling_factor": 1.0},
        "AutoencoderDC": dc_config(DC.preset("digits", scale=0.4)),
    }
    for name, config in cases.items():
        torch.manual_seed(0)
        net = getattr(diffusers, name)(**config).eval()
        net.save_pretrained(tmp_path / name)
        import_checkpoint(tmp_path / name, out=tmp_path / f"run-{name}")
        ours = build("models.autoencoders", {"name": "trained", "folder": str(tmp_path / f"run-{name}")}).load()
        x = torch.rand(2, net.config.in_channels, 16, 16) * 2 - 1
        coded = net.encode(x)
        z = coded.latent_dist.mean if hasattr(coded, "latent_dist") else getattr(coded, "latents", None)
        z = coded.latent if z is None else z
        assert torch.equal(ours.encode(x).mean, z)
        torch.testing.assert_close(ours.decode(z), net.decode(z).sample)
        about = ours.statistics
        expected = {"AutoencoderKL": (0.5, 4.0), "VQModel": None, "AutoencoderDC": (0.0, 2.5)}[name]
        assert (None if about is None else (float(about.mean), float(about.std))) == expected
        assert main(["export", str(tmp_path / f"run-{name}"), "--to", "diffusers", "--out", str(tmp_path / "out")]) == 0
        back = getattr(diffusers, name).from_pretrained(tmp_path / "out")
        kept = {key for key in net.config if not key.startswith("_")} - {"force_upcast"}
        ours, theirs = (json.dumps({key: one.config[key] for key in sorted(kept)}) for one in (back, net))
        assert ours == theirs
        shutil.rmtree(tmp_path / "out")
    odd = diffusers.AutoencoderKL(**{**small, "act_fn": "relu"})
    odd.save_pretrained(tmp_path / "odd")
    with pytest.raises(UserError, match=r"differs from what KL can be: act_fn relu \(here silu\)"):
        import_checkpoint(tmp_path / "odd", out=tmp_path / "none")


def dc_config(spec):
    """The config of an AutoencoderDC of a spec, as its class takes it."""
    config = spec.build().net.config
    return {key: value for key, value in config.items() if not key.startswith("_")}


def test_every_name_of_va_vae_has_its_place():
    """All 342 tensors, by shape, there and back; diffusers' own converter leaves out the levels' attention."""
    with torch.device("meta"):
        state = KL.preset("f16d32").build().net.state_dict()
    levels = 5
    public = to_ldm(state, levels)
    assert {name: value.shape for name, value in public.items()} == ldm_shapes(128, (1, 1, 2, 2, 4), 2, 32, (4,))
    assert len(public) == 342 and "decoder.up.4.attn.2.proj_out.bias" in public
    back = to_diffusers(public, levels)
    assert {name: value.shape for name, value in back.items()} == {name: value.shape for name, value in state.items()}


def test_gradients_pass_a_codebook_and_its_loss_is_that_of_the_paper():
    torch.manual_seed(0)
    net = VQ.preset("digits", codebook=1.0, commitment=0.25).build().double()
    x, tap = torch.rand(3, 1, 8, 8, dtype=torch.float64) * 2 - 1, FeatureRecorder((CODEBOOK,))
    net(x, torch.zeros(3), {}, tap=tap).square().sum().backward(retain_graph=True)
    assert float(net.latent_layer.grad.abs().max()) > 0 and net.net.quantize.embedding.weight.grad is None
    z = net.encode(x).mean.detach()
    error = (z - net.quantised(z)).square().flatten(1).mean(1)
    torch.testing.assert_close(tap.features[CODEBOOK], 1.25 * error)
    tap.features[CODEBOOK].sum().backward()
    assert float(net.net.quantize.embedding.weight.grad.abs().max()) > 0


def test_files_that_are_none(tmp_path):
    state = ldm()
    for name, change, said in (
        ("decoder.norm_out.bias", None, r"1 missing: net\.decoder\.conv_norm_out\.bias"),
        ("decoder.extra.weight", torch.zeros(1), r"1 unexpected: net\.decoder\.extra\.weight"),
    ):
        changed = {**state, name: change} if change is not None else {k: v for k, v in state.items() if k != name}
        torch.save(changed, tmp_path / "a.pt")
        with pytest.raises(UserError, match=said):
            import_checkpoint(tmp_path / "a.pt", "ldm_autoencoder", out=tmp_path / "out")
    torch.save(state, tmp_path / "b.pt")
    with pytest.raises(UserError, match="not of preset 'f8d4': they have width 32, blocks 1, multipliers"):
        import_checkpoint(tmp_path / "b.pt", "ldm_autoencoder", preset="f8d4", out=tmp_path / "out")


def test_levels_are_those_of_the_config():
    config = ldm_config(KL.preset("f16d32"))
    assert config["down_block_types"] == ("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",)
    assert config["up_block_types"] == ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4
    with pytest.raises(UserError, match=r"attention_levels"):
        KL(attention_levels=(3,))
    for owner in (KL, VQ, DC):
        assert owner.preset("digits").size == 8

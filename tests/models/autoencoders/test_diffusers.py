"""Latents to images: diffusers' own autoencoders from a folder, scaled as the checkpoint says."""

import importlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from gen.config.errors import UserError
from gen.config.spec import build
from gen.data.lib.learned import latent_scale
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.pipeline import Pipeline
from tests.models.test_families import random_net

diffusers = importlib.import_module("diffusers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("vae")
    net = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, sample_size=16,
    )  # fmt: skip
    net.save_pretrained(place)
    return place


def pipeline(info):
    spec = build("models", {"name": "dit", "preset": "digits", "channels": 4})
    return Pipeline(Denoiser(random_net(spec, dtype=torch.float32), Flow(), Velocity()), (4, 8, 8), 10, info=info)


@torch.no_grad()
def test_images_are_those_of_diffusers(folder):
    net = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    coder = build("models.autoencoders", {"name": "diffusers", "folder": str(folder)}).load()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(coder.encode(x).mean, net.encode(x).latent_dist.mode(), rtol=1e-5, atol=1e-5)
    z = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(coder.decode(z), net.decode(z).sample, rtol=1e-5, atol=1e-5)
    bf16 = build("models.autoencoders", {"name": "diffusers", "folder": str(folder), "dtype": "bfloat16"}).load()
    torch.testing.assert_close(bf16.decode(z), net.decode(z).sample, rtol=0.05, atol=0.05)


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.18215, [0.1, 0.2, 0.5, 1.0]])
def test_samples_are_decoded_apart_from_sampling(folder, scale):
    shift = 0.0 if isinstance(scale, float) else [1.0, 0.0, -1.0, 0.5]
    made = pipeline({"latent": {"scale": scale, "shift": shift}})
    latents = made.sample(5, steps=2)
    images = made.decoded(latents, folder, batch_size=2)
    net = diffusers.AutoencoderKL.from_pretrained(folder).eval()
    by, off = (torch.tensor(v).reshape(-1, 1, 1) for v in (scale, shift))
    torch.testing.assert_close(images.x, net.decode(latents.x / by + off).sample, rtol=1e-4, atol=1e-4)
    assert images.nfe == latents.nfe and images.seconds >= latents.seconds
    assert images.uint8().shape == (5, 3, 16, 16)


def test_whose_scale_is_known():
    trained = {"run": {"data": {"name": "latents", "path": "x", "scale": 2.0, "shift": 0.5}}}
    assert [float(v) for v in latent_scale(trained)] == [2.0, 0.5]
    assert [float(v) for v in latent_scale({"latent": {"scale": 2.0}})] == [2.0, 0.0]  # no shift is none
    with pytest.raises(UserError, match="images already"):
        latent_scale({"run": {"data": {"name": "digits"}}})
    with pytest.raises(UserError, match="images already"):
        latent_scale(None)
    with pytest.raises(UserError, match=r"only where it stands: stats\.pt"):
        latent_scale({"latent": {"scale": "stats.pt", "shift": "stats.pt"}})


def test_folders_that_are_none(folder, tmp_path):
    made = pipeline({"latent": {"scale": 1.0, "shift": 0.0}})
    samples = made.sample(1, steps=1)
    with pytest.raises(UserError, match=r"holds no config\.json with a _class_name"):
        made.decoded(samples, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "DiTTransformer2DModel"}), encoding="utf-8")
    with pytest.raises(UserError, match="holds a DiTTransformer2DModel, which is no autoencoder"):
        made.decoded(samples, tmp_path)
    for none in ("vea", "", tmp_path / "vea"):
        with pytest.raises(UserError, match=r"is no folder; allowed: a folder, or a spec of diffusers"):
            made.decoded(samples, none)
    for none in (5, None):
        with pytest.raises(UserError, match="allowed: a folder, a name, a spec, or an object with load"):
            made.decoded(samples, none)
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"holds no config\.json with a _class_name"):
        made.decoded(samples, tmp_path)


def test_a_pipeline_is_told_from_its_autoencoder(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "vae")
    with pytest.raises(UserError, match=r"no config.json with a _class_name; a pipeline's own is .*vae$"):
        build("models.autoencoders", {"name": "diffusers", "folder": str(tmp_path)}).load()


def test_folders_that_lack_weights(folder, tmp_path):
    made, file = pipeline({"latent": {"scale": 1.0, "shift": 0.0}}), tmp_path / "diffusion_pytorch_model.safetensors"
    samples = made.sample(1, steps=1)
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(UserError, match=r"cannot load this AutoencoderKL \(Error no file named"):
        made.decoded(samples, tmp_path)
    weights = load_file(folder / file.name)
    save_file({key: value for key, value in weights.items() if key != "decoder.conv_in.bias"}, file)
    with pytest.raises(UserError, match=r"has no weights decoder\.conv_in\.bias, which a AutoencoderKL needs"):
        made.decoded(samples, tmp_path)


def test_what_does_not_fit_is_said(folder):
    made = pipeline({"latent": {"scale": 1.0, "shift": 0.0}})
    images = made.decoded(made.sample(1, steps=1), folder)
    with pytest.raises(UserError, match=r"latents are \[1, 3, 16, 16\]; this autoencoder's have 4 channels"):
        made.decoded(images, folder)
    with pytest.raises(UserError, match="batch_size = 0; it must be in"):
        made.decoded(images, folder, batch_size=0)
    two = pipeline({"latent": {"scale": [1.0, 2.0], "shift": 0.0}})
    with pytest.raises(UserError, match=r"samples are \[1, 4, 8, 8\], the latents' scale is \[2, 1, 1\]"):
        two.decoded(two.sample(1, steps=1), folder)


# image ranges and kinds ----------------------------------------------------------------------------------------------


def rae(folder, **changes):
    settings = {
        "encoder_type": "mae", "encoder_hidden_size": 64, "encoder_patch_size": 4, "encoder_num_hidden_layers": 1,
        "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16, "patch_size": 4, "encoder_input_size": 16, "image_size": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    net = diffusers.AutoencoderRAE(**{**settings, **changes}).eval()
    net.save_pretrained(folder)
    return net


@torch.no_grad()
def test_images_of_an_rae_lie_between_0_and_1(tmp_path):
    """They were given, and taken as, images between -1 and 1: latents off by up to 2.5 deviations."""
    net = rae(tmp_path)
    coder = build("models.autoencoders", {"name": "diffusers", "folder": str(tmp_path)}).load()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = net.encode(x / 2 + 0.5).latent
    torch.testing.assert_close(coder.encode(x).mean, latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(coder.decode(latents), net.decode(latents).sample * 2 - 1, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_latents_say_the_range_of_their_images(folder):
    """EDM2 gives Stable Diffusion's autoencoder [0, 1]: a mean pixel of 31.7 there was 126.0 here."""
    made = pipeline({"latent": {"scale": 1.0, "shift": 0.0, "image_range": [0.0, 1.0]}})
    latents = made.sample(3, steps=2)
    theirs = diffusers.AutoencoderKL.from_pretrained(folder).eval().decode(latents.x).sample.clamp(0, 1) * 255
    spec = {"name": "diffusers", "folder": str(folder)}
    for given in (folder, spec, build("models.autoencoders", spec)):
        assert float((made.decoded(latents, given).uint8() - theirs).abs().max()) < 1
    other = build("models.autoencoders", {"name": "diffusers", "folder": str(folder)}).load()
    with pytest.raises(UserError, match=r"image_range is \(-1.0, 1.0\), the latents' \[0.0, 1.0\]"):
        made.decoded(latents, other)
    with pytest.raises(UserError, match="must be low < high"):
        build("models.autoencoders", {"name": "diffusers", "folder": str(folder), "image_range": [1, 0]})


@torch.no_grad()
def test_an_autoencoder_of_video_codes_one_frame(tmp_path):
    torch.manual_seed(0)
    net = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    ).eval()  # fmt: skip
    net.save_pretrained(tmp_path)
    coder = build("models.autoencoders", {"name": "diffusers", "folder": str(tmp_path)}).load()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = coder.encode(x).mean
    torch.testing.assert_close(latents, net.encode(x[:, :, None]).latent_dist.mode()[:, :, 0])
    torch.testing.assert_close(coder.decode(latents), net.decode(latents[:, :, None]).sample[:, :, 0])
    with pytest.raises(UserError, match="this autoencoder's have 4 channels"):
        coder.decode(latents[:, :3])


@torch.no_grad()
def test_what_ltx_keeps_beside_its_config_is_stated(tmp_path):
    torch.manual_seed(0)
    net = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 5, patch_size=4, scaling_factor=2.0,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
    ).eval()  # fmt: skip
    net.latents_mean.copy_(torch.tensor([1.0, 0.0, -1.0, 2.0]))
    net.latents_std.copy_(torch.tensor([1.0, 2.0, 4.0, 8.0]))
    net.save_pretrained(tmp_path)
    coder = build("models.autoencoders", {"name": "diffusers", "folder": str(tmp_path)}).load()
    assert coder.statistics.mean.flatten().tolist() == [1.0, 0.0, -1.0, 2.0]
    assert coder.statistics.std.flatten().tolist() == [0.5, 1.0, 2.0, 4.0]
    latent = coder.encode(torch.zeros(1, 3, 32, 32)).mean
    assert latent.shape[-1] * coder.stride == 32  # 16: two halvings of patches of 4


@torch.no_grad()
def test_flux_2_s_latents_are_patches_with_the_statistics_of_their_norm(tmp_path):
    """As its pipeline encodes a picture that is edited, and decodes what it has made."""
    torch.manual_seed(0)
    net = diffusers.AutoencoderKLFlux2(
        latent_channels=4, block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=2, sample_size=16,
    ).eval()  # fmt: skip
    net.bn.running_mean.normal_(0.0, 0.3)
    net.bn.running_var.uniform_(0.5, 2.0)
    net.save_pretrained(tmp_path)
    coder = build("models.autoencoders", {"name": "diffusers", "folder": str(tmp_path)}).load()
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    z = coder.encode(x).mean
    assert z.shape == (2, 16, 4, 6) and (coder.channels, coder.stride) == (16, 4)
    pipeline = object.__new__(diffusers.Flux2Pipeline)
    pipeline.vae = net
    normal = (z - coder.statistics.mean) / coder.statistics.std
    torch.testing.assert_close(normal, pipeline._encode_vae_image(x, None), rtol=1e-5, atol=1e-5)
    whole = net.decode(pipeline._unpatchify_latents(z)).sample
    torch.testing.assert_close(coder.decode(z), whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="multiples of 4"):
        coder.encode(x[..., :18])


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_autoencoder_of_sound_is_refused(tmp_path):
    diffusers.AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2],
        channel_multiples=[1],
        decoder_channels=8,
        decoder_input_channels=4,
    ).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a AutoencoderOobleck codes sound, no images"):
        build("models.autoencoders", {"name": "diffusers", "folder": str(tmp_path)}).load()

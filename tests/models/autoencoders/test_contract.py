"""One contract for every autoencoder: shapes, ranges and statistics are what the class itself makes of them."""

import importlib

import numpy as np
import pytest
import torch

from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import build
from gen.data.latents import Latents
from gen.diffusion.autoencoder import CODEBOOK, LATENT, MOMENTS, Posterior
from gen.diffusion.tap import FeatureRecorder

diffusers = importlib.import_module("diffusers")

DOWN, UP = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
LDM = {"block_out_channels": (8, 8), "down_block_types": DOWN, "up_block_types": UP, "norm_num_groups": 4}
VIDEO = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
DC = {
    "latent_channels": 8, "attention_head_dim": 4, "encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": (8, 16, 16), "decoder_block_out_channels": (8, 16, 16),
    "encoder_layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1), "scaling_factor": 0.4,
    "encoder_qkv_multiscales": ((),) * 3, "decoder_qkv_multiscales": ((),) * 3,
}  # fmt: skip
RAE = {
    "encoder_type": "mae", "encoder_hidden_size": 64, "encoder_patch_size": 4, "encoder_num_hidden_layers": 1,
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16, "patch_size": 4, "encoder_input_size": 16, "image_size": 16,
}  # fmt: skip
TINY = {
    "encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8), "num_encoder_blocks": (1, 1, 1),
    "num_decoder_blocks": (1, 1, 1), "latent_channels": 4,
}  # fmt: skip
# class: (config, channels, stride, whether latents have a distribution, (mean, std) that it states, first two)
CLASSES = {
    "AutoencoderKL": ({**LDM, "shift_factor": 0.5, "scaling_factor": 0.25}, 4, 2, True, ([0.5], [4.0])),
    "AutoencoderTiny": (TINY, 4, 4, False, None),
    "AutoencoderDC": (DC, 8, 4, False, ([0.0], [2.5])),
    "AutoencoderRAE": (RAE, 64, 4, False, None),
    "VQModel": ({**LDM, "scaling_factor": 1.0}, 3, 2, False, None),
    "AutoencoderKLQwenImage": (
        {**VIDEO, "temperal_downsample": [False] * 3, "latents_mean": [1.0, 2.0, 0.0, 0.0], "latents_std": [2.0] * 4},
        4, 8, True, ([1.0, 2.0], [2.0, 2.0]),
    ),
    "AutoencoderKLWan": (
        {**VIDEO, "temperal_downsample": [False] * 3, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4},
        4, 8, True, None,
    ),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_classes_of_diffusers_keep_the_contract(name, tmp_path):
    config, channels, stride, gaussian, stated = CLASSES[name]
    torch.manual_seed(0)
    getattr(diffusers, name)(**config).eval().save_pretrained(tmp_path)
    coder = build("models.autoencoders", {"name": "diffusers", "folder": str(tmp_path)}).load()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    posterior = coder.encode(x)
    assert isinstance(posterior, Posterior) and (posterior.logvar is not None) is gaussian
    assert posterior.mean.shape == (2, channels, 16 // stride, 16 // stride)
    assert (coder.channels, coder.stride, coder.image_channels) == (channels, stride, 3)
    assert coder.image_range == ((0.0, 1.0) if name == "AutoencoderRAE" else (-1.0, 1.0))
    images = coder.decode(posterior.mean)
    assert images.shape == x.shape and images.dtype == posterior.mean.dtype == torch.float32
    if stated is None:
        assert coder.statistics is None
    else:
        assert [list(value[:2].flatten()) for value in coder.statistics] == [list(map(float, row)) for row in stated]
    with pytest.raises(UserError, match=rf"multiples of {stride}, these are \[2, 3, 16, 15\]"):
        coder.encode(x[..., 1:])


OURS = {
    "kl": {"size": 16, "width": 16, "multipliers": (1, 2), "groups": 4, "attention_levels": (1,)},
    "vq": {"size": 16, "width": 16, "multipliers": (1, 2), "groups": 4, "vectors": 16},
    "dc": {"size": 16, "widths": (16, 32), "encoder_blocks": (1, 1), "decoder_blocks": (1, 1), "attention_from": 1},
    "hieratok": {"size": 16, "scales": (1, 2, 4), "width": 16, "heads": 2, "hidden": 16},
    "rae": {
        "size": 16,
        "channels": 3,
        "width": 16,
        "depth": 1,
        "heads": 2,
        "hidden": 16,
        "statistics": 4,
        "encoder": {"name": "vit", "grid": 4, "patch": 4, "width": 16, "depth": 1, "heads": 1, "table": 16},
    },
}


@pytest.mark.parametrize("name", OURS)
def test_networks_that_are_trained_keep_it_too(name):
    torch.manual_seed(0)
    net = build("models.autoencoders", {"name": name, **OURS[name]}).build().double()
    x = torch.rand(2, net.image_channels, 16, 16, dtype=torch.float64) * 2 - 1
    posterior, t, tap = net.encode(x), torch.zeros(2), FeatureRecorder()
    shape = (2, *net.latent_shape(x))
    assert posterior.mean.shape == shape and (posterior.logvar is not None) is net.gaussian
    assert shape[1:] == (net.channels, 16 // net.stride, 16 // net.stride)
    torch.testing.assert_close(net(x, t, {}, tap=tap), net.decode(posterior.mean), rtol=0, atol=0)
    assert torch.equal(tap.features[MOMENTS], posterior.moments) and (CODEBOOK in tap.features) is (name == "vq")
    noise = torch.randn(shape, dtype=torch.float64)
    drawn = net(x, t, {"posterior": noise, "perturbation": 0.1 * noise}, tap=tap)
    torch.testing.assert_close(tap.features[LATENT], posterior.sample(noise))
    torch.testing.assert_close(drawn, net.decode(posterior.sample(noise) + 0.1 * noise))
    drawn.square().mean().backward()
    for layer in (net.last_layer, net.latent_layer):
        assert layer is None or float(layer.grad.abs().max()) > 0
    with pytest.raises(UserError, match="trained on clean pictures"):
        net(x, t + 0.5, {})


def test_latents_are_standardised_by_what_their_autoencoder_states(tmp_path, capsys):
    """Encoded, trained on and decoded without a number that was copied by hand."""
    for name, expected in (("AutoencoderKL", (0.5, 0.25)), ("AutoencoderKLQwenImage", ([1, 2, 0, 0], [0.5] * 4))):
        torch.manual_seed(0)
        getattr(diffusers, name)(**CLASSES[name][0]).save_pretrained(tmp_path / name)
        np.savez(tmp_path / "a.npz", arr_0=np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8))
        out = tmp_path / f"latents-{name}"
        command = ["encode", str(tmp_path / "a.npz"), "--autoencoder", str(tmp_path / name), "--out", str(out)]
        assert main([*command, "--dtype", "float32", "--shard", "32", "--quiet"]) == 0
        plain, scaled = (Latents(str(out), posterior="mean", standardise=by) for by in ("none", "autoencoder"))
        shift, scale = (torch.tensor(value).reshape(-1, 1, 1) for value in expected)
        torch.testing.assert_close(scaled.open("train")[0]["x"], (plain.open("train")[0]["x"] - shift) * scale)
        about, _ = scaled.latent
        assert torch.tensor(about["scale"]).tolist() == scale.flatten().tolist()
    np.savez(tmp_path / "b.npz", arr_0=np.zeros((4, 15, 16, 3), dtype=np.uint8))
    command[1] = str(tmp_path / "b.npz")
    capsys.readouterr()
    assert main([*command[:-1], str(tmp_path / "none"), "--quiet"]) != 0
    assert "takes sides that are multiples of 8, these are [32, 3, 15, 16]" in capsys.readouterr().err

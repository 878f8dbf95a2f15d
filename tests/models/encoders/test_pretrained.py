"""Vision transformers from a folder: tiny ones with random weights, written as a pretrained one lies on a disk."""

import copy
import json
import sys

import pytest
import torch
from torch.nn import functional as F

from gen.config.errors import MissingDependency, UserError
from gen.config.spec import build
from gen.models.encoders.lib.vit import resample_positions

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).reshape(2, 1, 3, 1, 1)
PLAIN = torch.full((2, 1, 3, 1, 1), 0.5)
CLIP = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]]).reshape(2, 1, 3, 1, 1)


def write(transformers, folder, kind, **changes):
    """The reference model, and the folder that it was saved in."""
    owner, config = {
        "dinov2": ("Dinov2Model", "Dinov2Config"),
        "registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig"),
        "mae": ("ViTMAEModel", "ViTMAEConfig"),
        "clip": ("CLIPVisionModel", "CLIPVisionConfig"),
        "siglip2": ("SiglipVisionModel", "SiglipVisionConfig"),
    }[kind]
    sizes = {**SIZES, "image_size": 24, "patch_size": 4, **changes}
    if "dinov2" in owner.lower():
        sizes["mlp_ratio"] = 2
    model = getattr(transformers, owner)(getattr(transformers, config)(**sizes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder)
    return model


def normalised(x, statistics, side):
    mean, std = statistics
    return F.interpolate((x + 1) / 2, (side, side), mode="bicubic").sub(mean).div(std)


@pytest.mark.parametrize("side", [24, 10])
@pytest.mark.parametrize("kind", ["dinov2", "registers"])
def test_dinov2_on_its_own_grid_is_the_reference(transformers, tmp_path, kind, side):
    model = write(transformers, tmp_path, kind)
    encoder = build("models.encoders", {"name": "dinov2", "path": str(tmp_path), "grid": 6})
    x = torch.rand(2, 3, side, side) * 2 - 1
    features = encoder.load()(x)
    expected = model(normalised(x, IMAGENET, 24)).last_hidden_state
    torch.testing.assert_close(features.tokens, expected[:, -36:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.cls, expected[:, 0], rtol=1e-4, atol=1e-5)
    assert encoder.dim == 32 and not features.tokens.requires_grad


def test_mae_sees_every_patch_in_order(transformers, tmp_path):
    model = write(transformers, tmp_path, "mae", mask_ratio=0.75)
    encoder = build("models.encoders", {"name": "mae", "path": str(tmp_path), "grid": 6})
    x = torch.rand(2, 3, 24, 24) * 2 - 1
    net = encoder.load()
    features = net(x)
    assert features.tokens.shape == (2, 36, 32) and torch.equal(net(x).tokens, features.tokens)
    model.config.mask_ratio = 0.0
    order = torch.arange(36).flip(0).expand(2, -1)  # the reference sorts patches: here, backwards
    expected = model(normalised(x, IMAGENET, 24), noise=order).last_hidden_state
    torch.testing.assert_close(features.tokens.flip(1), expected[:, 1:], rtol=1e-4, atol=1e-5)
    raw = build("models.encoders", {"name": "mae", "path": str(tmp_path), "grid": 6, "norm": "none"}).load()(x)
    torch.testing.assert_close(model.layernorm(raw.tokens), features.tokens, rtol=1e-4, atol=1e-5)


def test_clip_is_normed_or_not(transformers, tmp_path):
    model = write(transformers, tmp_path, "clip")
    spec = {"name": "clip", "path": str(tmp_path), "grid": 6}
    x = torch.rand(2, 3, 24, 24) * 2 - 1
    expected = model(normalised(x, CLIP, 24))
    raw, normed = (build("models.encoders", {**spec, "norm": norm}).load()(x) for norm in ("none", "own"))
    torch.testing.assert_close(raw.tokens, expected.last_hidden_state[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(normed.cls, expected.pooler_output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(normed.tokens, model.post_layernorm(raw.tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dinov2", "mae", "clip", "siglip2"])
def test_another_grid_and_a_batch_of_one(transformers, tmp_path, kind):
    write(transformers, tmp_path, kind)
    encoder = build("models.encoders", {"name": kind, "path": str(tmp_path), "grid": 3}).load()
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    features, copied = encoder(x), copy.deepcopy(encoder)
    for p in copied.parameters():
        p.zero_()
    assert float(copied(x).tokens.abs().max()) == 0  # of its own weights, not of those that it was copied from
    assert features.tokens.shape == (3, 9, 32)
    torch.testing.assert_close(encoder(x[1:2]).tokens[0], features.tokens[1], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"\[B, 3, H, W\], this is \[3, 1, 32, 32\]"):
        encoder(x[:, :1])


@pytest.mark.parametrize(
    ("kind", "name"), [("registers", "dinov2"), ("mae", "mae"), ("clip", "clip"), ("siglip2", "siglip2")]
)
@pytest.mark.parametrize("grid", [5, 8])
def test_positions_are_resampled_as_the_reference_does(transformers, tmp_path, kind, name, grid):
    """Antialiased in DINOv2 with registers alone; the other way was 8 % rms off for the MAE of RAE, which grows."""
    model = write(transformers, tmp_path, kind, **({"mask_ratio": 0.0} if kind == "mae" else {}))
    x, side = torch.rand(2, 3, 24, 24) * 2 - 1, 4 * grid
    encoder = build("models.encoders", {"name": name, "path": str(tmp_path), "grid": grid})
    given = normalised(x, {"clip": CLIP, "siglip2": PLAIN}.get(kind, IMAGENET), side)
    if kind == "mae":
        order = torch.arange(grid**2).float().expand(2, -1)
        expected = model(given, noise=order, interpolate_pos_encoding=True).last_hidden_state
    elif kind == "clip":
        whole = model(given, interpolate_pos_encoding=True).last_hidden_state
        expected = getattr(model, "vision_model", model).post_layernorm(whole)
    else:
        own = {"interpolate_pos_encoding": True} if kind == "siglip2" else {}
        expected = model(given, **own).last_hidden_state
    torch.testing.assert_close(encoder.load()(x).tokens, expected[:, -(grid**2) :], rtol=1e-4, atol=1e-4)
    other = build("models.encoders", {"name": name, "path": str(tmp_path), "grid": grid, "antialias": name != "dinov2"})
    assert float((other.load()(x).tokens - expected[:, -(grid**2) :]).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("kind", ["registers", "dinov2", "mae", "clip", "siglip2"])
def test_a_plain_last_norm_gives_tokens_of_mean_0_and_variance_1(transformers, tmp_path, kind):
    """The latents of RAE: |token| is the root of its numbers; gain and bias bring back the model's own tokens."""
    model = write(transformers, tmp_path, kind)
    spec = {"name": "dinov2" if kind == "registers" else kind, "path": str(tmp_path), "grid": 6}
    x = torch.rand(2, 3, 24, 24) * 2 - 1
    plain, own = (build("models.encoders", {**spec, "norm": norm}).load()(x).tokens for norm in ("plain", "own"))
    torch.testing.assert_close(plain.mean(-1), torch.zeros(2, 36), rtol=0, atol=1e-6)
    torch.testing.assert_close(plain.square().sum(-1), torch.full((2, 36), 32.0), rtol=1e-4, atol=0)
    norm = model.post_layernorm if kind in ("clip", "siglip2") else model.layernorm
    torch.testing.assert_close(plain * norm.weight + norm.bias, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dinov2", "mae"])
def test_pixels_as_va_vae_gives_them(transformers, tmp_path, kind):
    model = write(transformers, tmp_path, kind, **({"mask_ratio": 0.0} if kind == "mae" else {}))
    spec = {"name": kind, "path": str(tmp_path), "grid": 6, "pixels": "plain", "resize": "bilinear"}
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    given = F.interpolate(x, (24, 24), mode="bilinear")
    order = {"noise": torch.arange(36).float().expand(2, -1)} if kind == "mae" else {}
    expected = model(given, **order).last_hidden_state[:, 1:]
    torch.testing.assert_close(build("models.encoders", spec).load()(x).tokens, expected, rtol=1e-4, atol=1e-5)


def test_published_sizes_are_those_of_the_reference(transformers):
    """To the unit: those of RAE, then of VA-VAE; SigLIP with its head, which the encoder leaves out."""
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    dino = {"image_size": 518, "patch_size": 14}
    kinds = {
        86_583_552: ("Dinov2WithRegisters", "Dinov2WithRegistersModel", dino),
        92_930_304: ("SiglipVision", "SiglipVisionModel", {"image_size": 256, "patch_size": 16}),
        85_798_656: ("ViTMAE", "ViTMAEModel", {}),
        304_368_640: ("Dinov2", "Dinov2Model", {**dino, **large}),
    }
    for expected, (config, owner, sizes) in kinds.items():
        with torch.device("meta"):
            model = getattr(transformers, owner)(getattr(transformers, f"{config}Config")(**sizes))
        assert sum(p.numel() for p in model.parameters()) == expected


def test_positions_on_another_grid():
    table = torch.cat([torch.full((1, 2), 9.0), torch.stack([torch.arange(64.0) // 8, torch.ones(64)], 1)])
    out = resample_positions(table, 4, antialias=True)
    assert out.shape == (17, 2) and torch.equal(out[0], table[0]) and resample_positions(table, 8, True) is table
    rows = out[1:, 0].reshape(4, 4)
    assert torch.allclose(out[1:, 1], torch.ones(16), atol=1e-6) and torch.allclose(rows[:, 0], rows[:, 3], atol=1e-5)
    assert torch.allclose(rows[1:3, 0], torch.tensor([2.5, 4.5]), atol=0.05)


@pytest.mark.parametrize("name", ["dinov2", "mae", "clip", "siglip2"])
def test_without_its_folder_an_encoder_says_so_in_one_line(tmp_path, name):
    encoder = build("models.encoders", {"name": name, "path": str(tmp_path)})
    for use in (lambda: encoder.dim, encoder.load):
        with pytest.raises(MissingDependency, match=r"holds no config\.json") as caught:
            use()
        assert "\n" not in str(caught.value)
    for text, message in {"{": "is no JSON", "[1]": "is no config: it holds list"}.items():
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            encoder.load()
    kinds = {"dinov2": "dinov2", "mae": "vit_mae", "clip": "clip_vision_model", "siglip2": "siglip_vision_model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kinds[name]}))
    with pytest.raises(UserError, match="says no hidden_size"):
        assert encoder.dim
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(UserError, match="is of type 'resnet'; allowed here"):
        encoder.load()


def test_the_width_that_is_said_of_a_folder_is_compared_once_it_is_there(tmp_path):
    said = {"name": "dinov2", "path": str(tmp_path / "dino"), "width": 8}
    assert build("models.encoders", said).dim == 8
    (tmp_path / "dino").mkdir()
    (tmp_path / "dino/config.json").write_text(json.dumps({"model_type": "dinov2", "hidden_size": 16}))
    with pytest.raises(UserError, match=r"DINOv2\.width 8; .* has 16"):
        assert build("models.encoders", said).dim


def test_without_the_package_an_encoder_says_so_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2", "hidden_size": 32}))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependency, match=r"pip install 'gen-diffusion\[transformers\]'") as caught:
        build("models.encoders", {"name": "dinov2", "path": str(tmp_path)}).load()
    assert "\n" not in str(caught.value)


def test_a_folder_without_weights_is_one_line(transformers, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov2", **SIZES}))
    with pytest.raises(UserError, match="cannot be read as a Dinov2Model") as caught:
        build("models.encoders", {"name": "dinov2", "path": str(tmp_path)}).load()
    assert "\n" not in str(caught.value)

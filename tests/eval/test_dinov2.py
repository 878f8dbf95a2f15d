"""DINOv2 against transformers' network with the hub's table of positions, from both families of names."""

import pytest
import torch
from torch.nn.functional import interpolate
from transformers import Dinov2Config, Dinov2Model

from gen.config.errors import MissingDependency, UserError
from gen.eval.features.dinov2 import MEAN, STD, DINOv2
from gen.eval.features.lib.images import normalised, resized, resized_by_pil


def small_dinov2(folder):
    """Save a small network, and return it."""
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14)
    model = Dinov2Model(config).eval().requires_grad_(False)
    for name, value in model.named_parameters():  # what starts at zero or one
        value.add_(
            0.3 * torch.randn(value.shape) if "position" in name or "cls" in name else 0.02 * torch.randn(value.shape)
        )
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2")
    return small_dinov2(folder), folder


def with_hub_positions(model: Dinov2Model) -> Dinov2Model:
    """The model with its 37 x 37 positions resampled as facebookresearch's own code does it."""
    table = model.embeddings.position_embeddings
    image = table[:, 1:].reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
    image = interpolate(image, scale_factor=((16 + 0.1) / 37,) * 2, mode="bicubic")
    assert image.shape[2:] == (16, 16)
    small = torch.cat([table[:, :1], image.permute(0, 2, 3, 1).flatten(1, 2)], 1)
    other = Dinov2Model(model.config).eval().requires_grad_(False)
    other.load_state_dict(model.state_dict())
    other.embeddings.position_embeddings = torch.nn.Parameter(small, requires_grad=False)
    other.embeddings.interpolate_pos_encoding = lambda *args: small
    return other


def test_it_is_the_hub_model_and_not_that_of_transformers(model) -> None:
    model, folder = model
    images = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8)
    x = normalised(resized_by_pil(images, (224, 224)) / 255, MEAN, STD)
    extractor = DINOv2(str(folder), batch=2).load()
    rows, expected = extractor(images), with_hub_positions(model)(x).last_hidden_state[:, 0]
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)
    theirs = model(x).last_hidden_state[:, 0]
    assert float((rows - theirs).norm() / theirs.norm()) > 1e-3
    assert extractor.name == "dinov2 vit-128x2/14 pil" and rows.shape == (3, 128)
    other = DINOv2(str(folder), resize="torch", batch=2).load()
    x = normalised(resized(images, 224, "bicubic", antialias=True) / 255, MEAN, STD)
    torch.testing.assert_close(
        other(images), with_hub_positions(model)(x).last_hidden_state[:, 0], rtol=1e-4, atol=1e-5
    )
    assert other.name != extractor.name and other.sha256 == extractor.sha256
    assert torch.equal(extractor(images.flip(0)), rows.flip(0))
    assert torch.equal(torch.cat([extractor(images[:1]), extractor(images[1:])]), rows)


def test_names_of_the_hub_are_the_same_network(model, tmp_path) -> None:
    model, folder = model
    old = {
        "patch_embed.proj.weight": model.embeddings.patch_embeddings.projection.weight,
        "patch_embed.proj.bias": model.embeddings.patch_embeddings.projection.bias,
        "cls_token": model.embeddings.cls_token,
        "pos_embed": model.embeddings.position_embeddings,
        "mask_token": model.embeddings.mask_token,
        **{f"norm.{name}": value for name, value in model.layernorm.named_parameters()},
    }
    for i, layer in enumerate(model.encoder.layer):
        state = layer.state_dict()
        for leaf in ("weight", "bias"):
            qkv = [
                next(v for k, v in state.items() if k.endswith((f".{x}_proj.{leaf}", f".{y}.{leaf}")))
                for x, y in zip("qkv", ("query", "key", "value"), strict=True)
            ]
            out = next(v for k, v in state.items() if k.endswith((f".o_proj.{leaf}", f".dense.{leaf}")))
            old |= {f"blocks.{i}.attn.qkv.{leaf}": torch.cat(qkv), f"blocks.{i}.attn.proj.{leaf}": out}
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                old[f"blocks.{i}.{part}.{leaf}"] = state[f"{part}.{leaf}"]
        for scale in "12":
            old[f"blocks.{i}.ls{scale}.gamma"] = state[f"layer_scale{scale}.lambda1"]
    torch.save(old, tmp_path / "hub.pth")
    assert DINOv2(str(tmp_path / "hub.pth")).load().sha256 == DINOv2(str(folder)).load().sha256
    old["blocks.0.mlp.w12.weight"] = torch.zeros(2)
    torch.save({**old, "register_tokens": torch.zeros(1, 4, 128)}, tmp_path / "registers.pth")
    with pytest.raises(UserError, match="is of another network: it has besides 2 tensors"):
        DINOv2(str(tmp_path / "registers.pth")).load()
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="is of another network: expected DINOv2's weights"):
        DINOv2(str(tmp_path / "other.pth")).load()
    with pytest.raises(MissingDependency, match=r"no path is given, .*: it should be .* with DINOv2's weights"):
        DINOv2().load()

"""A PixArt of diffusers, with random weights, is ours to rounding; and what is not one is refused."""

import importlib
import json

import pytest
import torch
from safetensors.torch import save_file

import gen
from gen.config.errors import UserError
from gen.models.interop.checkpoints import import_checkpoint
from gen.models.interop.public.pixart import from_diffusers
from gen.models.pixart import PixArt

TINY = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 8, "num_layers": 2,
    "cross_attention_dim": 24, "caption_channels": 12, "sample_size": 8,
}  # fmt: skip
OURS = {
    "size": 8, "width": 24, "depth": 2, "heads": 2, "learn_sigma": True, "text_width": 12, "text_length": 6,
    "null_text": "stored",
}  # fmt: skip


def theirs(seed=0, **changes):
    torch.manual_seed(seed)
    model = importlib.import_module("diffusers").PixArtTransformer2DModel(**(TINY | changes))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def inputs(dtype=torch.float64):
    x, text = torch.randn(3, 4, 8, 8, dtype=dtype), torch.randn(3, 6, 12, dtype=dtype)
    return x, torch.tensor([0.0, 17.0, 999.0]), text, torch.arange(6) < torch.tensor([[6], [3], [1]])


@pytest.mark.parametrize("size_condition", [False, True])
@pytest.mark.parametrize("scale", [None, 2])
@torch.no_grad()
def test_it_computes_what_diffusers_does(size_condition, scale):
    model = theirs(use_additional_conditions=size_condition, interpolation_scale=scale).double()
    spec = PixArt(**OURS, size_condition=size_condition, position_scale=scale or 1)
    net = spec.build().double()
    net.load_state_dict(from_diffusers(model.state_dict(), spec))
    x, t, text, mask = inputs()
    more = {"resolution": torch.tensor([[512.0, 256.0]] * 3), "aspect_ratio": torch.tensor([[0.5], [1.0], [2.0]])}
    given = {"added_cond_kwargs": more if size_condition else {"resolution": None, "aspect_ratio": None}}
    exact = model(x, text, timestep=t, encoder_attention_mask=mask.double(), **given).sample[:, :4]
    ours = net(x, t, {"text": text, "text_mask": mask, **(more if size_condition else {})})
    assert float((ours - exact).abs().max() / exact.abs().max()) < 1e-12
    changed = net(x, t, {"text": text, "text_mask": mask.roll(1, 0), **more})
    assert float((changed - exact).abs().max() / exact.abs().max()) > 1e-3


@pytest.mark.parametrize("size_condition", [False, True])
def test_the_published_size_has_their_parameters(size_condition):
    with torch.device("meta"):
        model = importlib.import_module("diffusers").PixArtTransformer2DModel(
            num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28,
            cross_attention_dim=1152, caption_channels=4096, sample_size=128, use_additional_conditions=size_condition,
        )  # fmt: skip
        ours = PixArt.preset("PixArt-XL/2-1024" if size_condition else "PixArt-Sigma-XL/2-1024").build()
    wanted = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in ours.parameters() if p.requires_grad) == wanted
    assert wanted == (611_349_152 if size_condition else 610_856_096)


def folder_of(folder, **changes):
    model, root = theirs(), folder / "pipe" / "transformer"
    root.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, root / "model.safetensors")
    config = {**{key: value for key, value in model.config.items() if not key.startswith("_")}, **changes}
    (root / "config.json").write_text(json.dumps({"_class_name": "PixArtTransformer2DModel", **config}))
    (folder / "pipe" / "vae").mkdir()
    (folder / "pipe" / "vae" / "config.json").write_text(json.dumps({"scaling_factor": 0.13025}))
    return root, model


def test_a_folder_is_imported_and_sampled_with_a_negative_caption_but_not_without(tmp_path):
    root, model = folder_of(tmp_path)
    done = import_checkpoint(root, out=tmp_path / "run")
    assert done.origin == "pixart" and done.latent["scale"] == 0.13025
    pipeline = gen.load(tmp_path / "run")
    x, t, text, mask = inputs(torch.float32)
    with torch.no_grad():
        exact = model(x, text, timestep=t, encoder_attention_mask=mask.float(),
                      added_cond_kwargs={"resolution": None, "aspect_ratio": None}).sample[:, :4]  # fmt: skip
        ours = pipeline.denoiser.net(x, t, {"text": text, "text_mask": mask})
    assert float((ours - exact).abs().max() / exact.abs().max()) < 1e-5
    cond = {"text": text, "text_mask": mask}
    assert pipeline.sample(3, cond, negative=cond, steps=2).x.isfinite().all()
    with pytest.raises(UserError, match="no caption is not stored"):
        pipeline.sample(3, cond, steps=2)
    with pytest.raises(UserError, match="--text-encoder"):
        pipeline.sample(cond=["a cat"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"norm_type": "ada_norm"}, "only 'ada_norm_single'"), ({"_class_name": "UNet"}, "allowed: PixArt"),
     ({"caption_channels": None}, "caption_channels is None")],
)  # fmt: skip
def test_another_network_is_refused_in_a_line(tmp_path, changes, said):
    root, _ = folder_of(tmp_path, **changes)
    with pytest.raises(UserError, match=said) as caught:
        import_checkpoint(root, "pixart", out=tmp_path / "run")
    assert "\n" not in str(caught.value)

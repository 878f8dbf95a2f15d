"""An SD3 of diffusers, with random weights, is ours to rounding; published sizes are counted; others are refused."""

import importlib
import json

import pytest
import torch
from safetensors.torch import save_file

import gen
from gen.config.errors import UserError
from gen.models.interop.checkpoints import import_checkpoint
from gen.models.interop.public.mmdit import from_diffusers
from gen.models.mmdit import MMDiT

TINY = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 3, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 10,
    "out_channels": 4, "pos_embed_max_size": 7,
}  # fmt: skip
OURS = {
    "size": 8, "width": 16, "depth": 3, "heads": 2, "text_width": 12, "text_length": 5, "pooled_width": 10,
    "null_text": "stored", "position_max": 7, "time_scale": 1000.0,
}  # fmt: skip
NEWER = {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}


def theirs(**changes):
    torch.manual_seed(0)
    model = importlib.import_module("diffusers").SD3Transformer2DModel(**(TINY | changes))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def inputs(dtype=torch.float64, size=(8, 8)):
    x, text, pooled = torch.randn(3, 4, *size), torch.randn(3, 5, 12), torch.randn(3, 10)
    cond = {"text": text.to(dtype), "text_mask": torch.ones(3, 5, dtype=torch.bool), "pooled": pooled.to(dtype)}
    return x.to(dtype), torch.tensor([0.0, 0.25, 1.0]), cond


@pytest.mark.parametrize("newer", [False, True], ids=["3", "3.5"])
@torch.no_grad()
def test_it_computes_what_diffusers_does(newer):
    model = theirs(**(NEWER if newer else {})).double()
    spec = MMDiT(**OURS, qk_norm=newer, dual_blocks=2 if newer else 0)
    net = spec.build().double()
    own = net.pos_embed.clone()
    net.load_state_dict(from_diffusers(model.state_dict(), spec))
    torch.testing.assert_close(net.pos_embed, own, rtol=0, atol=1e-6)
    for size in ((8, 8), (10, 4)):
        x, t, cond = inputs(size=size)
        exact = model(x, cond["text"], cond["pooled"], 1000 * t).sample
        ours = net(x, t, cond)
        exactly = 1e-8 if newer else 1e-12  # their RMS norm squares in float32
        bound = exactly if size == (8, 8) else 1e-6  # of another size positions are computed, in float32 here
        assert float((ours - exact).abs().max() / exact.abs().max()) < bound
        other = net(x, t, {**cond, "pooled": cond["pooled"].roll(1, 0)})
        assert float((other - exact).abs().max() / exact.abs().max()) > 1e-3


PUBLISHED = {
    "SD3-medium": ({}, 2_028_328_000),
    "SD3.5-medium": ({"qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13))}, 2_243_171_520),
    "SD3.5-large": ({"qk_norm": "rms_norm", "num_layers": 38, "num_attention_heads": 38,
                     "caption_projection_dim": 2432}, 8_056_627_520),
}  # fmt: skip


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_sizes_have_their_parameters(preset):
    sizes = {"sample_size": 128, "in_channels": 16, "out_channels": 16, "num_layers": 24, "attention_head_dim": 64,
             "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
             "pooled_projection_dim": 2048, "pos_embed_max_size": 2}  # fmt: skip
    changes, known = PUBLISHED[preset]
    with torch.device("meta"):
        model = importlib.import_module("diffusers").SD3Transformer2DModel(**{**sizes, **changes})
        ours = MMDiT.preset(preset, size=4, position_max=2).build()  # positions are no parameters
    wanted = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in ours.parameters() if p.requires_grad) == wanted
    assert known == wanted


def test_a_folder_is_imported_sampled_and_refused(tmp_path):
    model, root = theirs(), tmp_path / "pipe" / "transformer"
    root.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, root / "model.safetensors")
    config = {"_class_name": "SD3Transformer2DModel"} | {
        key: value for key, value in model.config.items() if not key.startswith("_")
    }
    (root / "config.json").write_text(json.dumps(config))
    done = import_checkpoint(root, out=tmp_path / "run")
    assert done.origin == "mmdit" and (done.latent["scale"], done.latent["shift"]) == (1.5305, 0.0609)
    pipeline, (x, t, cond) = gen.load(tmp_path / "run"), inputs(torch.float32)
    with torch.no_grad():
        exact, ours = model(x, cond["text"], cond["pooled"], 1000 * t).sample, pipeline.denoiser.net(x, t, cond)
    assert float((ours - exact).abs().max() / exact.abs().max()) < 1e-5
    assert pipeline.sample(3, cond, negative=cond, steps=2).x.isfinite().all()
    for changes, said in (({"dual_attention_layers": [1]}, "allowed: the first ones"), ({"patch_size": None}, "patch")):
        (root / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError, match=said):
            import_checkpoint(root, "mmdit", out=tmp_path / "again")

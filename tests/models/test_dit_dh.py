import dataclasses

import pytest
import torch
from torch.nn.functional import silu

from gen.diffusion.tap import FeatureRecorder
from gen.models.dit_dh import DiTDH

SMALL = DiTDH(
    size=4, patch=1, channels=3, classes=5, width=16, depth=2, heads=2, head_width=24, head_depth=2, head_heads=2
)


def random_net(spec=SMALL, seed=0):
    torch.manual_seed(seed)
    net = spec.build().double()
    for weight in net.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    return net


def inputs(n=3, spec=SMALL, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, spec.channels, spec.size, spec.size, generator=g, dtype=dtype)
    return x, torch.rand(n, generator=g, dtype=dtype), {"y": torch.randint(0, spec.classes + 1, (n,), generator=g)}


def test_state_dict_has_the_published_names_and_shapes():
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in DiTDH().build().state_dict().items()}
    layers = {
        "x_embedder.proj": (2048, 768, 1, 1),
        "s_embedder.proj": (1152, 768, 1, 1),
        "s_projector": (2048, 1152),
        "t_embedder.mlp.0": (1152, 512),
        "t_embedder.mlp.2": (1152, 1152),
        "final_layer.linear": (768, 2048),
        "final_layer.adaLN_modulation.1": (4096, 2048),
    }
    expected = {"t_embedder.W": (256,), "pos_embed": (1, 256, 1152), "final_layer.norm_final.weight": (2048,)}
    expected |= {"y_embedder.embedding_table.weight": (1001, 1152)}
    for which, dim in (("enc", 72), ("dec", 128)):
        expected |= {f"{which}_feat_rope.freqs_{part}": (256, dim) for part in ("cos", "sin")}
    for i in range(30):
        w = 1152 if i < 28 else 2048
        hidden = 8 * w // 3
        layers |= {
            f"blocks.{i}.attn.qkv": (3 * w, w),
            f"blocks.{i}.attn.proj": (w, w),
            f"blocks.{i}.mlp.w12": (2 * hidden, w),
            f"blocks.{i}.mlp.w3": (w, hidden),
            f"blocks.{i}.adaLN_modulation.1": (6 * w, w),
        }
        expected |= {f"blocks.{i}.norm{k}.weight": (w,) for k in (1, 2)}
    for name, shape in layers.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert shapes == expected


@pytest.mark.parametrize("twice", [True, False])
def test_conditions_pass_silu_where_they_are_computed_and_where_they_are_used(twice):
    net, (x, t, cond) = random_net(dataclasses.replace(SMALL, silu_twice=twice)), inputs()
    record = FeatureRecorder()
    net(x, t, cond, tap=record)
    site, time = record.features, net.t_embedder(t)
    first = silu if twice else lambda c: c
    c = first(time + net.y_embedder(cond["y"]))
    gate = net.blocks[0].adaLN_modulation[1](silu(c))[:, None].split(16, -1)[5]
    assert torch.equal(site["blocks.0.mlp"], gate * site["blocks.0.mlp.raw"])
    assert torch.equal(site["encoder"], first(time[:, None] + site["hidden.1"]))
    gates = net.blocks[2].adaLN_modulation[1](silu(net.s_projector(site["encoder"]))).split(24, -1)
    assert torch.equal(site["blocks.2.mlp"], gates[5] * site["blocks.2.mlp.raw"])
    tokens = net.x_embedder["proj"](x).flatten(2).mT
    assert torch.equal(site["hidden.2"], tokens + site["blocks.2.attn"] + site["blocks.2.mlp"])


def test_time_is_embedded_by_fixed_random_waves():
    net, (_, t, _) = random_net(), inputs()
    assert not net.t_embedder.W.requires_grad
    angle = 2 * torch.pi * t[:, None] * net.t_embedder.W
    wave = torch.cat([angle.sin(), angle.cos()], 1)
    torch.testing.assert_close(net.t_embedder(t), net.t_embedder.mlp(wave), rtol=0, atol=1e-12)
    torch.manual_seed(0)
    w = DiTDH.preset("digits").build().t_embedder.W
    assert w.mean().abs() < 0.2 and w.std().item() == pytest.approx(1, abs=0.15)
    told = random_net(dataclasses.replace(SMALL, time_convention="data", time_scale=2.0)).t_embedder
    torch.testing.assert_close(told(t), net.t_embedder(2 * (1 - t)), rtol=0, atol=1e-12)


def test_a_head_as_wide_as_its_encoder_needs_no_projection():
    net, (x, t, cond) = random_net(dataclasses.replace(SMALL, head_width=16)), inputs()
    assert not any(name.startswith("s_projector") for name in net.state_dict())
    assert net(x, t, cond).shape == x.shape


def test_initial_weights_follow_the_published_rules():
    torch.manual_seed(0)
    net = dataclasses.replace(SMALL, width=256).build()
    x, t, cond = inputs(dtype=torch.float32)
    record = FeatureRecorder()
    assert net(x, t, cond, tap=record).abs().max() == 0
    assert all(record.features[f"blocks.{i}"].abs().max() == 0 for i in range(4))
    bound = (6 / (256 + 3)) ** 0.5
    assert bound * 0.99 < net.s_embedder["proj"].weight.abs().max() <= bound
    qkv = net.blocks[0].attn.qkv  # as torch begins it
    assert 1 / 16 * 0.99 < qkv.weight.abs().max() <= 1 / 16 and qkv.bias.abs().max() > 0
    for weight in (net.y_embedder.embedding_table.weight, net.t_embedder.mlp[0].weight, net.t_embedder.mlp[2].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)

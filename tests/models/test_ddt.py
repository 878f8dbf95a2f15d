import dataclasses

import pytest
import torch
from torch.nn.functional import silu

from gen.diffusion.tap import FeatureRecorder, Skip
from gen.models.ddt import DDT
from gen.models.layers.embed import waves
from gen.models.layers.rope import interleaved_angles

SMALL = DDT(size=8, patch=2, channels=3, classes=5, width=32, encoder=2, decoder=2, heads=4)


def random_net(spec=SMALL, seed=0):
    torch.manual_seed(seed)
    net = spec.build().double()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return net


def inputs(n=3, spec=SMALL, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, spec.channels, spec.size, spec.size, generator=g, dtype=dtype)
    return x, torch.rand(n, generator=g, dtype=dtype), {"y": torch.randint(0, spec.classes + 1, (n,), generator=g)}


def test_state_dict_has_the_published_names_and_shapes():
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in DDT().build().state_dict().items()}
    expected = {"y_embedder.embedding_table.weight": (1001, 1152)}
    for i in range(28):
        block = {
            "norm1.weight": (1152,),
            "norm2.weight": (1152,),
            "attn.q_norm.weight": (72,),
            "attn.k_norm.weight": (72,),
            "attn.qkv.weight": (3456, 1152),
            "attn.proj.weight": (1152, 1152),
            "attn.proj.bias": (1152,),
            "mlp.w1.weight": (3072, 1152),
            "mlp.w3.weight": (3072, 1152),
            "mlp.w2.weight": (1152, 3072),
            "adaLN_modulation.0.weight": (6912, 1152),
            "adaLN_modulation.0.bias": (6912,),
        }
        expected |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    layers = {
        "x_embedder.proj": (1152, 16),
        "s_embedder.proj": (1152, 16),
        "t_embedder.mlp.0": (1152, 256),
        "t_embedder.mlp.2": (1152, 1152),
        "final_layer.linear": (16, 1152),
        "final_layer.adaLN_modulation.0": (2304, 1152),
    }
    for name, shape in layers.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert shapes == expected


def test_time_is_embedded_as_published():
    net, (_, t, _) = random_net(), inputs()
    angle = (1 - t)[:, None] * 10.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    wave = torch.cat([angle.cos(), angle.sin()], 1)
    torch.testing.assert_close(net.t_embedder(t), net.t_embedder.mlp(wave), rtol=0, atol=1e-12)
    torch.testing.assert_close(waves(1 - t, 256, 10.0), wave, rtol=0, atol=1e-13)
    plain = random_net(dataclasses.replace(SMALL, max_period=10_000.0, time_convention="noise", time_scale=1000.0))
    torch.testing.assert_close(plain.t_embedder(t), plain.t_embedder.mlp(waves(1000 * t, 256)), rtol=0, atol=1e-12)


def test_conditions_pass_silu_once_and_each_token_has_its_own():
    """The decoder's first block, written out: c and s pass SiLU where they are made, and not where they are used."""
    net, (x, t, cond) = random_net(), inputs()
    record = FeatureRecorder()
    net(x, t, cond, tap=record)
    site, time = record.features, net.t_embedder(t)
    c = silu(time + net.y_embedder(cond["y"]))
    h = net.s_embedder["proj"](torch.nn.functional.unfold(x, 2, stride=2).mT)
    gate = net.blocks[0].adaLN_modulation[0](c)[:, None].split(32, -1)[5]
    assert torch.equal(site["blocks.0.mlp"], gate * site["blocks.0.mlp.raw"])
    assert torch.equal(site["hidden.0"], h + site["blocks.0.attn"] + site["blocks.0.mlp"])
    assert torch.equal(site["encoder"], silu(time[:, None] + site["hidden.1"]))
    block, s = net.blocks[2], site["encoder"]
    shift, scale, gate, *_ = block.adaLN_modulation[0](s).split(32, -1)  # [B, T, 32]: each token has its own
    h = net.x_embedder["proj"](torch.nn.functional.unfold(x, 2, stride=2).mT)
    inner = h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * block.norm1.weight * (1 + scale) + shift
    expected = gate * block.attn(inner, net.rope)
    torch.testing.assert_close(site["blocks.2.attn"], expected, rtol=0, atol=1e-12)
    assert torch.equal(site["trunk"], site["hidden.3"])


def test_the_mlp_against_its_definition():
    mlp = random_net().blocks[0].mlp
    h = torch.randn(2, 5, 32, dtype=torch.float64)
    a, b = h @ mlp.w1.weight.T, h @ mlp.w3.weight.T
    torch.testing.assert_close(mlp(h), (a * a.sigmoid() * b) @ mlp.w2.weight.T, rtol=0, atol=1e-12)
    assert mlp.w1.out_features == int(2 * 4 * 32 / 3)


def test_positions_enter_by_rotations_alone():
    net, angles = random_net(), interleaved_angles(8, 4)
    torch.testing.assert_close(net.rope.freqs_cos[:, ::2], angles.cos().float().double(), rtol=0, atol=0)
    assert angles[-1, 0] == 16 and angles[4, 1] == pytest.approx(16 / 3)  # from 0 to 16, whatever the size
    x, t, cond = inputs()
    swap = torch.arange(16).roll(5)

    def moved(net):
        patches = torch.nn.functional.unfold(x, 2, stride=2)[..., swap]
        there = net(torch.nn.functional.fold(patches, (8, 8), 2, stride=2), t, cond)
        back = torch.nn.functional.unfold(net(x, t, cond), 2, stride=2)[..., swap]
        return (torch.nn.functional.unfold(there, 2, stride=2) - back).abs().max().item()

    assert moved(net) > 1e-6
    net.rope.freqs_cos.fill_(1)
    net.rope.freqs_sin.fill_(0)
    assert moved(net) < 1e-12


def test_a_kept_encoder_is_all_that_the_decoder_needs():
    net, (x, t, cond) = random_net(), inputs()
    record, ran = FeatureRecorder(("encoder",)), []
    expected = net(x, t, cond, tap=record)

    def replay(site, compute, h):
        ran.append(site)
        return record.features["encoder"] if site == "encoder" else compute(h)

    assert torch.equal(net(x, t, cond, tap=replay), expected)
    assert "blocks.1" not in ran and "blocks.2" in ran
    other = {"y": (cond["y"] + 1) % 5}
    assert torch.equal(net(x, t, other, tap=replay), expected)  # the class speaks through the encoder only


def test_initial_weights_follow_the_published_rules():
    torch.manual_seed(0)
    net = dataclasses.replace(SMALL, width=256).build()
    x, t, cond = inputs(dtype=torch.float32)
    assert net(x, t, cond).abs().max() == 0
    bound = (6 / (256 + 12)) ** 0.5
    for embedder in (net.x_embedder, net.s_embedder):
        assert bound * 0.99 < embedder["proj"].weight.abs().max() <= bound
        assert embedder["proj"].bias.abs().max() == 0
    modulation = net.blocks[0].adaLN_modulation[0].weight  # no zeros: as torch begins it
    assert 1 / 16 * 0.99 < modulation.abs().max() <= 1 / 16
    for weight in (net.y_embedder.embedding_table.weight, net.t_embedder.mlp[0].weight, net.t_embedder.mlp[2].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)
    zero = [name for name, p in net.named_parameters() if p.abs().max() == 0 and "embedder" not in name]
    assert zero == [f"final_layer.{a}.{b}" for a in ("linear", "adaLN_modulation.0") for b in ("weight", "bias")]


def test_skipping_the_decoder_leaves_its_ends():
    net, (x, t, cond) = random_net(), inputs()
    record = FeatureRecorder(("trunk",))
    net(
        x,
        t,
        cond,
        tap=lambda site, compute, h: Skip(("blocks.2", "blocks.3"))(site, lambda h: record(site, compute, h), h),
    )
    assert torch.equal(record.features["trunk"], net.x_embedder["proj"](torch.nn.functional.unfold(x, 2, stride=2).mT))

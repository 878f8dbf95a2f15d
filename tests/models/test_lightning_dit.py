import dataclasses

import pytest
import torch

from gen.diffusion.tap import FeatureRecorder
from gen.models.dit import DiT
from gen.models.lightning_dit import LightningDiT

SMALL = LightningDiT(size=8, patch=2, channels=3, classes=5, width=32, depth=3, heads=4)


def random_net(spec=SMALL, seed=0):
    torch.manual_seed(seed)
    net = spec.build().double()
    for weight in net.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    return net


def inputs(n=3, spec=SMALL, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, spec.channels, spec.size, spec.size, generator=g, dtype=dtype)
    return x, torch.rand(n, generator=g, dtype=dtype), {"y": torch.randint(0, spec.classes + 1, (n,), generator=g)}


def test_state_dict_has_the_published_names_and_shapes():
    with torch.device("meta"):
        net = LightningDiT.preset("XL/1", qk_norm=True).build()
    shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    block = {
        "attn.qkv": (3456, 1152),
        "attn.proj": (1152, 1152),
        "mlp.w12": (6144, 1152),
        "mlp.w3": (1152, 3072),
        "adaLN_modulation.1": (6912, 1152),
    }
    layers = {f"blocks.{i}.{name}": shape for i in range(28) for name, shape in block.items()}
    layers |= {
        "x_embedder.proj": (1152, 32, 1, 1),
        "t_embedder.mlp.0": (1152, 256),
        "t_embedder.mlp.2": (1152, 1152),
        "final_layer.linear": (32, 1152),
        "final_layer.adaLN_modulation.1": (2304, 1152),
    }
    gains = {"norm1": 1152, "norm2": 1152, "attn.q_norm": 72, "attn.k_norm": 72}
    expected = {f"blocks.{i}.{name}.weight": (n,) for i in range(28) for name, n in gains.items()}
    expected |= {"pos_embed": (1, 256, 1152), "y_embedder.embedding_table.weight": (1001, 1152)}
    expected |= {"final_layer.norm_final.weight": (1152,)}
    expected |= {"feat_rope.freqs_cos": (256, 72), "feat_rope.freqs_sin": (256, 72)}
    for name, shape in layers.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert shapes == expected


def test_the_dit_of_rae_embeds_time_by_random_waves():
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in LightningDiT.preset("RAE-DiT-XL/1").build().state_dict().items()}
    assert shapes["t_embedder.W"] == (256,)
    assert shapes["t_embedder.mlp.0.weight"] == (1152, 512)
    assert LightningDiT.preset("RAE-DiT-XL/1").time_convention == "noise"
    assert LightningDiT.preset("XL/1").time_convention == "data"


def test_initial_weights_follow_the_published_rules():
    torch.manual_seed(0)
    net = LightningDiT(size=4, channels=4, width=256, depth=1, heads=4).build()
    block = net.blocks[0]
    for weight, ends in ((block.attn.qkv.weight, 1024), (block.mlp.w12.weight, 256 + 2 * 682)):
        bound = (6 / ends) ** 0.5  # Xavier, uniform
        assert bound * 0.99 < weight.abs().max() <= bound
    for weight in (net.y_embedder.embedding_table.weight, net.t_embedder.mlp[0].weight, net.t_embedder.mlp[2].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert all(p.abs().max() == 0 for name, p in net.named_parameters() if name.endswith("bias"))
    assert torch.equal(block.norm1.weight, torch.ones(256))


def test_a_block_against_its_definition():
    """Norms by root mean square, q and k normed and turned, SwiGLU; gates and shifts in the published order."""
    spec = dataclasses.replace(SMALL, depth=1, qk_norm=True)
    net, (x, t, cond) = random_net(spec), inputs()
    record = FeatureRecorder()
    net(x, t, cond, tap=record)
    block, h = net.blocks[0], net.pos_embed + net.x_embedder["proj"](x).flatten(2).mT
    c = torch.nn.functional.silu(net.t_embedder(t) + net.y_embedder(cond["y"]))
    shift1, scale1, gate1, shift2, scale2, gate2 = block.adaLN_modulation[1](c)[:, None].split(32, -1)

    def rms(h, gain):
        return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain

    q, k, v = block.attn.qkv(rms(h, block.norm1.weight) * (1 + scale1) + shift1).split(32, -1)
    angle = torch.atan2(net.feat_rope.freqs_sin, net.feat_rope.freqs_cos)[:, ::2]  # [T, 4]
    mixed = []
    for i in range(4):
        one = slice(8 * i, 8 * i + 8)
        turned = []
        for z, norm in ((q, block.attn.q_norm), (k, block.attn.k_norm)):
            z = torch.view_as_complex(rms(z[..., one], norm.weight).unflatten(-1, (4, 2)).contiguous())
            turned.append(z * torch.polar(torch.ones_like(angle), angle))
        weight = ((turned[0] @ turned[1].mH).real / 8**0.5).softmax(-1)
        mixed.append(weight @ v[..., one])
    h = h + gate1 * block.attn.proj(torch.cat(mixed, -1))
    a, b = block.mlp.w12(rms(h, block.norm2.weight) * (1 + scale2) + shift2).split(85, -1)
    h = h + gate2 * block.mlp.w3(a * a.sigmoid() * b)
    torch.testing.assert_close(record.features["trunk"], h, rtol=0, atol=1e-7)  # the table of turns is in float32


def test_positions_count_beyond_the_fixed_table():
    """Without the table a DiT does not know where its tokens are; here the turns still tell."""
    nets = [random_net(DiT(size=8, patch=2, channels=3, classes=5, width=32, depth=3, heads=4)), random_net()]
    x, t, cond = inputs()
    swap = torch.arange(16).roll(3)

    def moved(net):
        net.pos_embed.data.zero_()
        patches = torch.nn.functional.unfold(x, 2, stride=2)[..., swap]
        there = net(torch.nn.functional.fold(patches, (8, 8), 2, stride=2), t, cond)
        back = torch.nn.functional.unfold(net(x, t, cond), 2, stride=2)[..., swap]
        return (torch.nn.functional.unfold(there, 2, stride=2) - back).abs().max().item()

    plain, turned = (moved(net) for net in nets)
    assert plain < 1e-12 < 1e-6 < turned

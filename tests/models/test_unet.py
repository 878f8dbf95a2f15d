from dataclasses import replace

import pytest
import torch

from gen.diffusion.tap import Chain, FeatureRecorder, Skip
from gen.models.layers.conv import PixelAttention, ResBlock, resample
from gen.models.unet import UNet
from gen.training.trainer import train
from tests.gen.tiny import tiny

SMALL = UNet(
    size=8, channels=3, classes=5, width=16, multipliers=(1, 2), blocks=1, attention=(4,), head_width=8, groups=4
)


def random_net(spec=SMALL, seed=0, dtype=torch.float64):
    """A network whose every part matters: no weight is left at its zero start."""
    torch.manual_seed(seed)
    net = spec.build().double()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return net.to(dtype).eval()


def inputs(n=4, spec=SMALL, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, spec.channels, spec.size, spec.size, generator=g, dtype=dtype)
    t = 1000 * torch.rand(n, generator=g, dtype=dtype)
    return x, t, {"y": torch.randint(0, spec.classes + 1, (n,), generator=g)}


def test_state_dict_has_the_published_names_and_shapes():
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in SMALL.build().state_dict().items()}
    expected = {"label_emb.weight": (5, 64)}

    def layer(name, *shape):
        expected.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    def block(name, width, out):
        layer(f"{name}.in_layers.0", width)
        layer(f"{name}.in_layers.2", out, width, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * out, 64)
        layer(f"{name}.out_layers.0", out)
        layer(f"{name}.out_layers.3", out, out, 3, 3)
        if width != out:
            layer(f"{name}.skip_connection", out, width, 1, 1)

    def attention(name, width):
        layer(f"{name}.norm", width)
        layer(f"{name}.qkv", 3 * width, width, 1)
        layer(f"{name}.proj_out", width, width, 1)

    layer("time_embed.0", 64, 16)
    layer("time_embed.2", 64, 64)
    layer("input_blocks.0.0", 16, 3, 3, 3)
    for name, width, out in (("1.0", 16, 16), ("2.0", 16, 16), ("3.0", 16, 32)):
        block(f"input_blocks.{name}", width, out)
    for name, width, out in (("0.0", 64, 32), ("1.0", 48, 32), ("1.2", 32, 32), ("2.0", 48, 16), ("3.0", 32, 16)):
        block(f"output_blocks.{name}", width, out)
    for name in ("input_blocks.3.1", "middle_block.1", "output_blocks.0.1", "output_blocks.1.1"):
        attention(name, 32)
    block("middle_block.0", 32, 32)
    block("middle_block.2", 32, 32)
    layer("out.0", 16)
    layer("out.2", 3, 16, 3, 3)
    assert shapes == expected


def test_fresh_net_returns_zero_and_adds_nothing():
    net, record = SMALL.build(), FeatureRecorder(("blocks.*", "middle", "encoder.3"))
    x, t, cond = inputs(dtype=torch.float32)
    assert net(x, t, cond, tap=record).abs().max() == 0
    site = record.features
    assert all(h.abs().max() == 0 for name, h in site.items() if name.startswith("blocks."))
    assert torch.equal(site["middle"], site["encoder.3"].flatten(2).mT)


def sites():
    blocks = {f"blocks.{i}{tail}" for i in range(10) for tail in ("", ".conv")}
    blocks |= {f"blocks.{i}.attn" for i in (2, 3, 5, 6)}
    values = {f"encoder.{i}" for i in range(4)} | {f"decoder.{i}" for i in range(4)}
    return blocks | values | {"time", "middle", "trunk", "final"}


@pytest.mark.parametrize("change", [{}, {"learn_sigma": True}, {"classes": 0}, {"heads": 2}])
def test_a_tap_that_only_looks_sees_every_site_and_changes_no_bit(change):
    spec = replace(SMALL, **change)
    net, (x, t, cond) = random_net(spec), inputs()
    record = FeatureRecorder()
    out = net(x, t, cond, tap=Chain((record, Skip(()))))
    assert torch.equal(out, net(x, t, cond))
    site = record.features
    assert set(site) == sites()
    assert site["middle"].shape == (4, 16, 32) and site["encoder.3"].shape == (4, 32, 4, 4)
    assert site["time"].shape == (4, 64)
    assert torch.equal(site["trunk"], site["decoder.3"])
    assert torch.equal(site["blocks.2"], site["blocks.2.conv"] + site["blocks.2.attn"])
    assert torch.equal(out, site["final"][:, :3]) and site["final"].shape[1] == (6 if spec.learn_sigma else 3)


def test_what_was_kept_on_the_way_down_lies_behind():
    net, (x, t, cond) = random_net(), inputs()
    record = FeatureRecorder()
    net(x, t, cond, tap=record)
    site, known = record.features, (cond["y"] < 5)[:, None]
    c = site["time"] + known * net.label_emb.weight[cond["y"].clamp(max=4)]
    wide, (block,) = torch.cat([site["decoder.1"], site["encoder.1"]], 1), net.output_blocks[2]
    torch.testing.assert_close(site["decoder.2"], block.skip_connection(wide) + block(wide, c))


def test_leaving_out_what_a_block_adds_leaves_its_shortcut():
    net, (x, t, cond) = random_net(), inputs()
    record = FeatureRecorder(("encoder.*",))
    net(x, t, cond, tap=Chain((record, Skip(("blocks.*",)))))
    site = record.features
    assert torch.equal(site["encoder.1"], site["encoder.0"])
    assert torch.equal(site["encoder.2"], resample(site["encoder.1"], "down"))
    assert torch.equal(site["encoder.3"], net.input_blocks[3][0].skip_connection(site["encoder.2"]))


def test_a_replayed_trunk_runs_no_block():
    net, (x, t, cond) = random_net(), inputs()
    record, ran = FeatureRecorder(("trunk",)), []
    expected = net(x, t, cond, tap=record)

    def replay(site, compute, h):
        ran.append(site)
        return record.features["trunk"] if site == "trunk" else compute(h)

    assert torch.equal(net(x, t, cond, tap=replay), expected)
    assert ran == ["time", "encoder.0", "trunk", "final"]


def test_the_way_up_hears_of_the_way_down_twice():
    """What the middle makes of its input reaches the end, and so does what was kept beside it."""
    net, (x, t, cond) = random_net(), inputs()
    expected = net(x, t, cond)

    def changed(where):
        def tap(site, compute, h):
            return torch.zeros_like(compute(h)) if site == where else compute(h)

        return net(x, t, cond, tap=tap)

    for where in ("middle", "encoder.0", "encoder.1", "encoder.2", "encoder.3"):
        assert not torch.equal(changed(where), expected)
    record = FeatureRecorder(("decoder.0",))
    net(x, t, cond, tap=Chain((record, lambda site, f, h: 0 * h if site == "middle" else f(h))))
    assert record.features["decoder.0"].abs().max() > 0


@pytest.mark.parametrize("how", ["keep", "down", "up"])
def test_a_residual_block_is_its_formula(how):
    torch.manual_seed(0)
    block = ResBlock(8, 12, 6, groups=2, resampling=how).double()
    for weight in block.parameters():
        torch.nn.init.normal_(weight)
    h, c = torch.randn(3, 8, 4, 4).double(), torch.randn(3, 6).double()
    norm, _, conv = block.in_layers
    inner = conv(resample(torch.nn.functional.silu(norm(h)), how))
    scale, shift = block.emb_layers[1](torch.nn.functional.silu(c)).split(12, 1)
    normed = block.out_layers[0](inner) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    torch.testing.assert_close(block(h, c), block.out_layers[3](torch.nn.functional.silu(normed)))
    assert block.shortcut(h).shape == block(h, c).shape


def test_attention_is_its_formula_in_both_orders():
    torch.manual_seed(0)
    attn = PixelAttention(12, heads=3, groups=2).double()
    for weight in attn.parameters():
        torch.nn.init.normal_(weight)
    h = torch.randn(2, 12, 3, 3).double()
    qkv = torch.einsum("oc,bct->bot", attn.qkv.weight[..., 0], attn.norm(h).flatten(2)) + attn.qkv.bias[:, None]
    q, k, v = qkv.reshape(2, 3, 3, 4, 9).unbind(1)  # which, head, channel, place
    mixed = torch.einsum("bhqk,bhck->bhcq", (torch.einsum("bhcq,bhck->bhqk", q, k) / 2).softmax(-1), v)
    expected = torch.einsum("oc,bct->bot", attn.proj_out.weight[..., 0], mixed.reshape(2, 12, 9))
    expected = (expected + attn.proj_out.bias[:, None]).reshape(2, 12, 3, 3)
    torch.testing.assert_close(attn(h), expected)
    legacy = PixelAttention(12, heads=3, groups=2, order="heads").double()
    legacy.load_state_dict(attn.state_dict())
    rows = torch.arange(36).reshape(3, 3, 4).transpose(0, 1).flatten()  # head, which, channel
    with torch.no_grad():
        legacy.qkv.weight.copy_(attn.qkv.weight[rows])
        legacy.qkv.bias.copy_(attn.qkv.bias[rows])
    torch.testing.assert_close(legacy(h), expected)


def test_no_class_adds_nothing():
    net, (x, t, cond) = random_net(), inputs()
    unlabelled = replace(SMALL, classes=0).build().double().eval()
    unlabelled.load_state_dict({k: v for k, v in net.state_dict().items() if k != "label_emb.weight"})
    null = net.null(cond)
    assert null["y"].tolist() == [5] * 4
    assert torch.equal(net(x, t, null), unlabelled(x, t, {}))
    net(x, t, null).sum().backward()
    assert net.label_emb.weight.grad.abs().max() == 0


def test_dropout_is_for_training():
    net, (x, t, cond) = random_net(replace(SMALL, dropout=0.5)), inputs()
    assert torch.equal(net(x, t, cond), net(x, t, cond))
    net.train()
    assert not torch.equal(net(x, t, cond), net(x, t, cond))


def test_the_middle_can_be_aligned(tmp_path):
    objective = {"name": "urepa", "hidden": 16, "site": "middle"}
    run = tiny(model=UNet.preset("digits", width=16, head_width=8), objective=objective, steps=2, validate_every=0)
    done = train(run, tmp_path, quiet=True)
    assert done.step == 2 and (tmp_path / "final" / "head.safetensors").exists()

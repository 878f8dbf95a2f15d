import dataclasses
import importlib

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.tap import Chain, FeatureRecorder, Skip
from gen.models.dit import DiT
from gen.models.layers.patch import unpatchify

SMALL = DiT(size=8, patch=2, channels=3, classes=5, width=32, depth=3, heads=4)


def random_net(spec=SMALL, seed=0, dtype=torch.float64):
    """A network whose every part matters: no weight is left at its zero start."""
    torch.manual_seed(seed)
    net = spec.build().double()
    for name, weight in net.named_parameters():
        if name != "pos_embed":
            torch.nn.init.normal_(weight, std=0.1)
    return net.to(dtype)


def inputs(n=4, spec=SMALL, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, spec.channels, spec.size, spec.size, generator=g, dtype=dtype)
    t = torch.rand(n, generator=g, dtype=dtype)
    return x, t, {"y": torch.randint(0, spec.classes + 1, (n,), generator=g)}


def test_state_dict_has_the_published_names_and_shapes():
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in DiT.preset("XL/2", learn_sigma=True).build().state_dict().items()}
    block = {
        "attn.qkv": (3456, 1152),
        "attn.proj": (1152, 1152),
        "mlp.fc1": (4608, 1152),
        "mlp.fc2": (1152, 4608),
        "adaLN_modulation.1": (6912, 1152),
    }
    layers = {f"blocks.{i}.{name}": shape for i in range(28) for name, shape in block.items()}
    layers |= {
        "x_embedder.proj": (1152, 4, 2, 2),
        "t_embedder.mlp.0": (1152, 256),
        "t_embedder.mlp.2": (1152, 1152),
        "final_layer.linear": (32, 1152),
        "final_layer.adaLN_modulation.1": (2304, 1152),
    }
    expected = {"pos_embed": (1, 256, 1152), "y_embedder.embedding_table.weight": (1001, 1152)}
    for name, shape in layers.items():
        expected |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    assert shapes == expected


def test_initial_weights_follow_the_published_rules():
    torch.manual_seed(0)
    net = DiT(width=256, depth=1, heads=4).build()
    bound = (6 / (256 + 768)) ** 0.5  # Xavier, uniform
    qkv = net.blocks[0].attn.qkv.weight
    assert bound * 0.99 < qkv.abs().max() <= bound
    patch = (6 / (256 + 16)) ** 0.5  # the patch as one vector of 2 * 2 * 4
    assert patch * 0.99 < net.x_embedder["proj"].weight.abs().max() <= patch
    for weight in (net.y_embedder.embedding_table.weight, net.t_embedder.mlp[0].weight, net.t_embedder.mlp[2].weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert all(p.abs().max() == 0 for name, p in net.named_parameters() if name.endswith("bias"))
    assert not net.pos_embed.requires_grad


def test_patches_come_back_where_they_were():
    net = random_net()
    image = torch.arange(2 * 3 * 8 * 8, dtype=torch.float64).reshape(2, 3, 8, 8)
    patches = image.reshape(2, 3, 4, 2, 4, 2).permute(0, 2, 4, 3, 5, 1).reshape(2, 16, 12)  # channel fastest
    assert torch.equal(unpatchify(patches, net.spec.patch), image)


def sites(depth):
    per_block = ("", ".attn", ".attn.raw", ".mlp", ".mlp.raw")
    blocks = {f"blocks.{i}{tail}" for i in range(depth) for tail in per_block}
    return blocks | {f"hidden.{i}" for i in range(depth)} | {"time", "trunk", "final"}


@pytest.mark.parametrize("change", [{}, {"learn_sigma": True}, {"qk_norm": True}, {"classes": 0}])
def test_a_tap_that_only_looks_sees_every_site_and_changes_no_bit(change):
    spec = dataclasses.replace(SMALL, **change)
    net, (x, t, cond) = random_net(spec), inputs()
    record = FeatureRecorder()
    seen = net(x, t, cond, tap=Chain((record, Skip(()))))
    assert torch.equal(seen, net(x, t, cond))
    assert set(record.features) == sites(SMALL.depth)
    assert torch.equal(record.features["trunk"], record.features["hidden.2"])
    assert record.features["blocks.1.attn"].shape == (4, 16, 32)


def test_sites_are_what_their_names_say():
    net, (x, t, cond) = random_net(), inputs()
    record = FeatureRecorder()
    net(x, t, cond, tap=record)
    site = record.features
    assert torch.equal(site["hidden.1"], site["hidden.0"] + site["blocks.1.attn"] + site["blocks.1.mlp"])
    assert torch.equal(site["blocks.1"], site["blocks.1.attn"] + site["blocks.1.mlp"])
    gate = net.blocks[1].adaLN_modulation(net.t_embedder(t) + net.y_embedder(cond["y"])).chunk(6, 1)[5]
    assert torch.equal(site["blocks.1.mlp"], gate[:, None] * site["blocks.1.mlp.raw"])


@pytest.mark.parametrize("patterns", [("blocks.*",), ("blocks.*.attn", "blocks.*.mlp"), ("blocks.*.raw",)])
def test_skipping_every_residual_leaves_only_the_ends(patterns):
    net, (x, t, cond) = random_net(), inputs()
    record = FeatureRecorder(("trunk",))
    net(x, t, cond, tap=Chain((record, Skip(patterns))))
    assert torch.equal(record.features["trunk"], net.pos_embed + net.x_embedder["proj"](x).flatten(2).mT)


def test_a_replayed_trunk_runs_no_block():
    net, (x, t, cond) = random_net(), inputs()
    record, ran = FeatureRecorder(("trunk",)), []
    expected = net(x, t, cond, tap=record)

    def replay(site, compute, h):
        ran.append(site)
        return record.features["trunk"] if site == "trunk" else compute(h)

    assert torch.equal(net(x, t, cond, tap=replay), expected)
    assert ran == ["time", "trunk", "final"]


def test_a_fresh_net_learns_in_its_last_layer_first():
    net = SMALL.build()
    x, t, cond = inputs(dtype=torch.float32)
    (net(x, t, cond) - x).square().mean().backward()
    moving = {name for name, w in net.named_parameters() if w.grad is not None and w.grad.abs().max() > 0}
    assert moving == {"final_layer.linear.weight", "final_layer.linear.bias"}


def wrong_calls():
    x, t, cond = inputs()
    return {
        "no labels": ((x, t, {}), "5 classes and needs cond['y']; given: nothing"),
        "other keys": ((x, t, {"text": x}), "given: text"),
        "short labels": ((x, t, {"y": cond["y"][:2]}), "int64 [2]; for this x it must be torch.int64 [4]"),
        "one label": ((x, t, {"y": cond["y"][0]}), "int64 []"),
        "one-hot labels": ((x, t, {"y": torch.eye(4)}), "float32 [4, 4]"),
        "wrong channels": ((x[:, :1], t, cond), "this DiT takes [B, 3, 8, 8]"),
        "wrong size": ((x[..., :3], t, cond), "x has shape [4, 3, 8, 3]"),
        "one time": ((x, t[0], cond), "t has shape []; for this x it must be [4]"),
    }


@pytest.mark.parametrize("case", wrong_calls())
def test_wrong_calls_fail_in_one_line(case):
    (x, t, cond), words = wrong_calls()[case]
    with pytest.raises(UserError) as error:
        random_net()(x, t, cond)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def ported_weights(net, depth):
    """Our state dict under the names of diffusers' DiTTransformer2DModel, which keeps the embedders once per block."""
    ours = net.state_dict()
    moves = {
        "attn.proj": "attn1.to_out.0",
        "mlp.fc1": "ff.net.0.proj",
        "mlp.fc2": "ff.net.2",
        "adaLN_modulation.1": "norm1.linear",
    }
    ends = {
        "x_embedder.proj": "pos_embed.proj",
        "final_layer.adaLN_modulation.1": "proj_out_1",
        "final_layer.linear": "proj_out_2",
    }
    theirs = {}
    for part in ("weight", "bias"):
        theirs |= {f"{b}.{part}": ours[f"{a}.{part}"] for a, b in ends.items()}
        for i in range(depth):
            block = f"transformer_blocks.{i}"
            theirs |= {f"{block}.{b}.{part}": ours[f"blocks.{i}.{a}.{part}"] for a, b in moves.items()}
            for name, rows in zip("qkv", ours[f"blocks.{i}.attn.qkv.{part}"].chunk(3), strict=True):
                theirs[f"{block}.attn1.to_{name}.{part}"] = rows
            for a, b in ((0, 1), (2, 2)):
                theirs[f"{block}.norm1.emb.timestep_embedder.linear_{b}.{part}"] = ours[f"t_embedder.mlp.{a}.{part}"]
    for i in range(depth):
        table = f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight"
        theirs[table] = ours["y_embedder.embedding_table.weight"]
    return theirs


def test_equals_the_diffusers_port_in_its_convention():
    diffusers = importlib.import_module("diffusers")
    Port = diffusers.DiTTransformer2DModel
    spec = DiT(size=8, patch=2, channels=4, classes=10, width=48, depth=3, heads=4, learn_sigma=True)
    port = Port(4, 12, 4, 8, num_layers=3, sample_size=8, num_embeds_ada_norm=10).double().eval()
    same = random_net(dataclasses.replace(spec, freq_shift=1, mlp_norm_eps=1e-5))
    port.load_state_dict(ported_weights(same, 3))
    x, _, cond = inputs(spec=spec)
    t = torch.tensor([0, 17, 500, 999])
    record = FeatureRecorder(("final",))
    same(x, t.double(), cond, tap=record)
    with torch.no_grad():
        theirs = port(x, t, cond["y"]).sample
    scale = theirs.abs().max()
    assert (record.features["final"] - theirs).abs().max() < 1e-5 * scale  # their waves are computed in float32
    published = random_net(spec)
    published(x, t.double(), cond, tap=record)
    off = (record.features["final"] - theirs).abs().amax((1, 2, 3)) / scale
    assert off[0] < 1e-3 < 0.01 < off[3]  # the two conventions agree at t = 0 only

"""Variants of published networks: forward passes written out here equal ours, and the others are refused by name."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import gen
from gen.config.errors import UserError
from gen.models.interop.checkpoints import import_checkpoint
from tests.models.interop import published
from tests.models.interop.published import CLASSES, DEPTH, HEADS, PATCH, SIDE, W, block, embedders, filled, final

CHANNELS = published.CHANNELS


def transformer(state, x, t, y, gated, rms, rope, shifted):
    """LightningDiT's forward, and DiT's, written out from their repository; float64, one time for all."""
    p = {name: value.double() for name, value in state.items()}

    def lin(name, h):
        return F.linear(h, p[f"{name}.weight"], p.get(f"{name}.bias"))

    def norm(name, h):
        if rms:
            return h * (h.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * p[f"{name}.weight"]
        return F.layer_norm(h, h.shape[-1:], eps=1e-6)

    def turned(h):
        if not rope:
            return h
        a, b = h.unflatten(-1, (-1, 2)).unbind(-1)
        return h * p["feat_rope.freqs_cos"] + torch.stack([-b, a], -1).flatten(-2) * p["feat_rope.freqs_sin"]

    def normed(name, h):
        if f"{name}.bias" in p:
            return F.layer_norm(h, h.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)
        return h

    waves = torch.exp(-math.log(10000) * torch.arange(128).double() / 128) * t
    c = lin("t_embedder.mlp.2", F.silu(lin("t_embedder.mlp.0", torch.cat([waves.cos(), waves.sin()])[None])))
    c = F.silu(c + p["y_embedder.embedding_table.weight"][y])
    h = F.conv2d(x, p["x_embedder.proj.weight"], p["x_embedder.proj.bias"], PATCH).flatten(2).mT
    h = h + p.get("pos_embed", torch.zeros(()).double())
    for i in range(DEPTH):
        parts = lin(f"blocks.{i}.adaLN_modulation.1", c)[:, None].chunk(6 if shifted else 4, -1)
        zero = torch.zeros_like(parts[0])
        s1, a1, g1, s2, a2, g2 = parts if shifted else (zero, parts[0], parts[1], zero, parts[2], parts[3])
        qkv = lin(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", h) * (1 + a1) + s1)
        q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k = (turned(normed(f"blocks.{i}.attn.{n}_norm", z)) for n, z in (("q", q), ("k", k)))
        mixed = ((q @ k.mT / math.sqrt(W // HEADS)).softmax(-1) @ v).transpose(1, 2).flatten(2)
        h = h + g1 * lin(f"blocks.{i}.attn.proj", mixed)
        inner = norm(f"blocks.{i}.norm2", h) * (1 + a2) + s2
        if gated:
            a, b = lin(f"blocks.{i}.mlp.w12", inner).chunk(2, -1)
            out = lin(f"blocks.{i}.mlp.w3", F.silu(a) * b)
        else:
            out = lin(f"blocks.{i}.mlp.fc2", F.gelu(lin(f"blocks.{i}.mlp.fc1", inner), approximate="tanh"))
        h = h + g2 * out
    shift, scale = lin("final_layer.adaLN_modulation.1", c)[:, None].chunk(2, -1)
    out = lin("final_layer.linear", norm("final_layer.norm_final", h) * (1 + scale) + shift)
    image = out.reshape(len(x), SIDE, SIDE, PATCH, PATCH, -1).permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
    return image[:, : x.shape[1]]


def lightning(gated=True, rms=True, rope=True, shifted=True):
    """hustvl/LightningDiT, models/lightningdit.py, by its flags use_swiglu, use_rmsnorm, use_rope and wo_shift."""
    mlp = published.swiglu if gated else published.gelu
    blocks = {k: v for i in range(DEPTH) for k, v in block(i, W, mlp, rms=rms).items()}
    if not shifted:
        blocks = {k: (4 * W, *v[1:]) if "adaLN" in k else v for k, v in blocks.items()}
    shapes = {**published.patches("x_embedder", W), **embedders(), **blocks, **final(W, PATCH**2 * CHANNELS, rms=rms)}
    tables = {f"feat_rope.{k}": v for k, v in published.turns(W // HEADS, SIDE).items()} if rope else {}
    return {"pos_embed": published.places(W, SIDE), **filled(shapes), **tables}


def network(tmp_path, state, origin):
    torch.save(state, tmp_path / "a.pt")
    import_checkpoint(tmp_path / "a.pt", origin, out=tmp_path / "out")
    net = gen.load(tmp_path / "out").denoiser.net.double()
    return type(net)(replace(net.spec, time_convention="noise")).double(), net.state_dict()


def equal(tmp_path, state, origin, **flags):
    net, weights = network(tmp_path, state, origin)
    net.load_state_dict(weights)
    x = torch.randn(2, CHANNELS, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.tensor([3, CLASSES])
    with torch.no_grad():
        ours = net(x, torch.full((2,), 0.3, dtype=torch.float64), {"y": y})
        torch.testing.assert_close(ours, transformer(state, x, 0.3, y, **flags), rtol=1e-9, atol=1e-9)


FLAGS = {"gated": True, "rms": True, "rope": True, "shifted": True}


@pytest.mark.parametrize("without", [(), ("gated",), ("rms",), ("rope",), ("shifted",), tuple(FLAGS)], ids=str)
def test_lightning_dit_by_its_flags(tmp_path, without):
    flags = FLAGS | dict.fromkeys(without, False)
    equal(tmp_path, lightning(**flags), {"name": "lightning_dit", "heads": HEADS}, **flags)


PLAIN = {"gated": False, "rms": False, "rope": False, "shifted": True}


def test_layer_norms_of_q_and_k_are_repas(tmp_path):
    gains = {
        f"blocks.{i}.attn.{n}_norm.{kind}": (W // HEADS,)
        for i in range(DEPTH)
        for n in "qk"
        for kind in ("weight", "bias")
    }
    equal(tmp_path, {**published.repa(), **filled(gains, 5)}, "repa", **PLAIN)


def test_a_learned_table_of_positions_is_kept(tmp_path):
    """Also one that was interpolated for larger images."""
    state = published.dit()
    state["pos_embed"] = torch.randn(state["pos_embed"].shape, generator=torch.Generator().manual_seed(3))
    equal(tmp_path, state, "sit", **PLAIN)
    torch.save(state, tmp_path / "b.pt")
    notes = import_checkpoint(tmp_path / "b.pt", "dit", out=tmp_path / "b").notes
    assert any("learned, or interpolated" in note for note in notes)


def rae_plain(rope=True, places=True):
    """bytetriper/RAE's plain DiT by its flags use_rope and use_pos_embed."""
    state = lightning(rope=rope)
    state = {k: v for k, v in state.items() if not k.startswith("t_embedder.mlp.0") and (places or k != "pos_embed")}
    return {
        **state,
        **filled({"t_embedder.W": (256,), "t_embedder.mlp.0.weight": (W, 512), "t_embedder.mlp.0.bias": (W,)}),
    }


@pytest.mark.parametrize(("rope", "places"), [(True, False), (False, True), (False, False)])
def test_an_rae_without_tables_has_tables_that_change_nothing(tmp_path, rope, places):
    origin = {"name": "rae", "size": 2 * SIDE, "heads": HEADS}
    net, weights = network(tmp_path, rae_plain(rope, places), origin)
    (tmp_path / "b").mkdir()
    whole, full = network(tmp_path / "b", rae_plain(), "rae")
    assert rope or ((weights["feat_rope.freqs_cos"] == 1).all() and (weights["feat_rope.freqs_sin"] == 0).all())
    assert places or (weights["pos_embed"] == 0).all()
    assert set(weights) == set(full) and net.spec == whole.spec
    if not (rope or places):
        torch.save(rae_plain(False, False), tmp_path / "c.pt")
        with pytest.raises(UserError, match=r"no table of positions, and so do not show the size of x: say it"):
            import_checkpoint(tmp_path / "c.pt", {"name": "rae", "heads": HEADS}, out=tmp_path / "c")


def test_edm2_with_other_channels_of_time(tmp_path):
    """Their channel_mult_noise and channel_mult_emb."""
    state = published.edm2()
    emb = {name: value for name, value in state.items() if "emb_linear" in name or "emb_label" in name}
    for name, value in emb.items():
        wide = torch.randn(24, value.shape[1]) if "label" in name else torch.randn(value.shape[0], 24)
        state[name] = wide
    state |= {"unet.emb_noise.weight": torch.randn(24, 8)}
    state |= {f"unet.emb_fourier.{name}": torch.randn(8) for name in ("freqs", "phases")}
    net, weights = network_of_edm2(tmp_path, state)
    assert (net.spec.noise_channels, net.spec.emb_channels) == (8, 24)
    assert all(torch.equal(weights[name], value) for name, value in state.items())


def network_of_edm2(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    import_checkpoint(tmp_path / "a.pt", {"name": "edm2", "head_width": 16}, out=tmp_path / "out")
    pipeline = gen.load(tmp_path / "out")
    assert torch.isfinite(pipeline.sample(2, steps=2).x).all()
    return pipeline.denoiser.net, pipeline.denoiser.net.state_dict()


def test_ddts_plain_dit_is_refused_by_name(tmp_path):
    state = {name: value for name, value in published.ddt().items() if not name.startswith("s_embedder")}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError, match="these are weights of DDT's plain DiT"):
        import_checkpoint(tmp_path / "a.pt", out=tmp_path / "out")


def test_eight_bit_floats_become_floats(tmp_path):
    """They ended in a traceback."""
    state = {name: value.to(torch.float8_e4m3fn) for name, value in published.dit().items() if name != "pos_embed"}
    torch.save({**state, "pos_embed": published.dit()["pos_embed"]}, tmp_path / "a.pt")
    import_checkpoint(tmp_path / "a.pt", "dit", out=tmp_path / "out")
    ours = gen.load(tmp_path / "out").denoiser.net.state_dict()
    assert all(torch.equal(ours[name], value.float()) for name, value in state.items())

"""EDM's networks, in small: their own forward, written out from the paper and its names, against the imported ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import avg_pool2d, conv2d, conv_transpose2d, group_norm, interpolate, linear, silu

import gen
from gen.config.errors import UserError
from gen.diffusion.parameterisation import EDMPrecond
from gen.diffusion.path import EDM
from gen.models.interop.checkpoints import import_checkpoint
from tests.models.interop.published import filled

W, EMB, CLASSES, HEAD = 128, 512, 5, 64


def shapes():
    """Two levels of one block, 8 and 4 pixels, the second attends."""
    made = {"map_layer0": (EMB, W), "map_layer1": (EMB, EMB)}
    weights = {f"{name}.weight": shape for name, shape in made.items()}
    weights |= {f"{name}.bias": shape[:1] for name, shape in made.items()}
    weights |= {"map_label.weight": (EMB, CLASSES), "map_augment.weight": (W, 9)}

    def conv(name, out, into, side):
        weights.update({f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)})

    def block(name, into, out, attention=False, resampled=False):
        for norm, width in (("norm0", into), ("norm1", out), *([("norm2", out)] if attention else [])):
            weights.update({f"{name}.{norm}.weight": (width,), f"{name}.{norm}.bias": (width,)})
        conv(f"{name}.conv0", out, into, 3)
        conv(f"{name}.conv1", out, out, 3)
        weights.update({f"{name}.affine.weight": (2 * out, EMB), f"{name}.affine.bias": (2 * out,)})
        if into != out:
            conv(f"{name}.skip", out, into, 1)
        if attention:
            conv(f"{name}.qkv", 3 * out, out, 1)
            conv(f"{name}.proj", out, out, 1)
        if resampled:
            weights.update({f"{name}.{part}.resample_filter": (1, 1, 2, 2) for part in ("conv0", "skip")})

    conv("enc.8x8_conv", W, 3, 3)
    block("enc.8x8_block0", W, W)
    block("enc.4x4_down", W, W, resampled=True)
    block("enc.4x4_block0", W, 2 * W, attention=True)
    block("dec.4x4_in0", 2 * W, 2 * W, attention=True)
    block("dec.4x4_in1", 2 * W, 2 * W)
    block("dec.4x4_block0", 4 * W, 2 * W, attention=True)
    block("dec.4x4_block1", 3 * W, 2 * W, attention=True)
    block("dec.8x8_up", 2 * W, 2 * W, resampled=True)
    block("dec.8x8_block0", 3 * W, W)
    block("dec.8x8_block1", 2 * W, W)
    weights.update({"out_norm.weight": (W,), "out_norm.bias": (W,)})
    conv("out_conv", 3, W, 3)
    return weights


def theirs(p, x, noise, y):
    """F of their network at c_noise for one-hot labels."""
    frequencies = (1 / 10000) ** (torch.arange(W // 2).double() / (W // 2))
    wave = noise[:, None] * frequencies
    emb = silu(linear(torch.cat([wave.cos(), wave.sin()], 1), p["map_layer0.weight"], p["map_layer0.bias"]))
    emb = linear(emb, p["map_layer1.weight"], p["map_layer1.bias"]) + p["map_label.weight"].T[y]
    emb = silu(emb)

    def norm(name, h):
        return group_norm(h, 32, p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)

    def conv(name, h):
        w = p[f"{name}.weight"]
        return conv2d(h, w, p[f"{name}.bias"], padding=w.shape[-1] // 2)

    def block(name, h):
        change = {"down": lambda h: avg_pool2d(h, 2), "_up": lambda h: interpolate(h, scale_factor=2)}
        moved = next((f for end, f in change.items() if name.endswith(end)), lambda h: h)
        out = conv(f"{name}.conv0", moved(silu(norm(f"{name}.norm0", h))))
        scale, shift = linear(emb, p[f"{name}.affine.weight"], p[f"{name}.affine.bias"])[..., None, None].chunk(2, 1)
        out = conv(f"{name}.conv1", silu(shift + norm(f"{name}.norm1", out) * (scale + 1)))
        h = out + (conv(f"{name}.skip", moved(h)) if f"{name}.skip.weight" in p else moved(h))
        if f"{name}.qkv.weight" not in p:
            return h
        heads = h.shape[1] // HEAD
        q, k, v = conv(f"{name}.qkv", norm(f"{name}.norm2", h)).reshape(len(h) * heads, HEAD, 3, -1).unbind(2)
        w = torch.einsum("ncq,nck->nqk", q, k / HEAD**0.5).softmax(2)
        return h + conv(f"{name}.proj", torch.einsum("nqk,nck->ncq", w, v).reshape(h.shape))

    h, kept = conv("enc.8x8_conv", x), []
    kept.append(h)
    for name in ("8x8_block0", "4x4_down", "4x4_block0"):
        h = block(f"enc.{name}", h)
        kept.append(h)
    for name in ("4x4_in0", "4x4_in1", "4x4_block0", "4x4_block1", "8x8_up", "8x8_block0", "8x8_block1"):
        h = torch.cat([h, kept.pop()], 1) if "block" in name else h
        h = block(f"dec.{name}", h)
    return conv("out_conv", silu(norm("out_norm", h)))


def saved(tmp_path, state):
    torch.save({"ema": {f"model.{name}": value for name, value in state.items()}}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


@torch.no_grad()
def test_the_imported_network_is_theirs(tmp_path):
    state = {name: value / 4 for name, value in filled(shapes()).items()}
    done = import_checkpoint(saved(tmp_path, state), out=tmp_path / "out")
    assert done.origin == "edm" and set(done.dropped.values()) == {"a fixed filter", "of augmentation in training"}
    pipeline = gen.load(tmp_path / "out")
    assert (pipeline.denoiser.path, pipeline.denoiser.parameterisation) == (EDM(), EDMPrecond())
    net, g = pipeline.denoiser.net.double(), torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 3, 8, 8, generator=g).double(), torch.tensor([1, 4])
    t = torch.tensor([0.3, 2.0]).double()
    expected = theirs({name: value.double() for name, value in state.items()}, x, t.log() / 4, y)
    torch.testing.assert_close(net(x, EDM().t_to_network(t), {"y": y}), expected, rtol=1e-9, atol=1e-9)
    assert pipeline.sampler.steps == 18
    assert bool(torch.isfinite(gen.load(tmp_path / "out").sample(2, steps=2).x).all())


def test_the_stochastic_plan_is_that_of_the_readme(tmp_path):
    path = saved(tmp_path, filled(shapes()))
    sampler = import_checkpoint(path, {"name": "edm", "sampler": "sde"}, out=tmp_path / "out").run.sampler
    assert (sampler.steps, sampler.solver.churn, sampler.solver.s_noise) == (256, 40 / 256, 1.003)


# SongUNet: DDPM++ and NCSN++ ------------------------------------------------------------------------------------------

SONG, NOISE = 16, {"ddpmpp": 16, "ncsnpp": 32}
TAPS = {"ddpmpp": (1.0, 1.0), "ncsnpp": (1.0, 3.0, 3.0, 1.0)}
DOWN, UP = ("8x8_block0", "4x4_down", "4x4_block0"), ("4x4_in0", "4x4_in1", "4x4_block0", "4x4_block1", "8x8_up")


def song_shapes(kind):
    """Two levels of one block, 8 and 4 pixels of 16 and 32 channels, the second attends."""
    weights = {}

    def conv(name, out, into, side, resampled=False):
        weights.update({f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)})
        if resampled:
            weights.update({f"{name}.resample_filter": (1, 1, len(TAPS[kind]), len(TAPS[kind]))})

    def norm(name, width):
        weights.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def block(name, into, out, attention=False, resampled=False):
        norm(f"{name}.norm0", into)
        norm(f"{name}.norm1", out)
        conv(f"{name}.conv0", out, into, 3, resampled)
        conv(f"{name}.conv1", out, out, 3)
        weights.update({f"{name}.affine.weight": (out, 4 * SONG), f"{name}.affine.bias": (out,)})
        if into != out or resampled:
            conv(f"{name}.skip", out, into, 1, resampled)
        if attention:
            norm(f"{name}.norm2", out)
            conv(f"{name}.qkv", 3 * out, out, 1)
            conv(f"{name}.proj", out, out, 1)

    for name, into in (("map_layer0", NOISE[kind]), ("map_layer1", 4 * SONG)):
        weights.update({f"{name}.weight": (4 * SONG, into), f"{name}.bias": (4 * SONG,)})
    weights.update({"map_label.weight": (NOISE[kind], CLASSES), "map_label.bias": (NOISE[kind],)})
    weights.update({"map_augment.weight": (NOISE[kind], 9)})
    conv("enc.8x8_conv", SONG, 3, 3)
    block("enc.8x8_block0", SONG, SONG)
    block("enc.4x4_down", SONG, SONG, resampled=True)
    if kind == "ncsnpp":
        weights.update({"map_noise.freqs": (NOISE[kind] // 2,)})
        conv("enc.4x4_aux_residual", SONG, 3, 3, resampled=True)
    block("enc.4x4_block0", SONG, 2 * SONG, attention=True)
    block("dec.4x4_in0", 2 * SONG, 2 * SONG, attention=True)
    block("dec.4x4_in1", 2 * SONG, 2 * SONG)
    block("dec.4x4_block0", 4 * SONG, 2 * SONG)
    block("dec.4x4_block1", 3 * SONG, 2 * SONG, attention=True)
    block("dec.8x8_up", 2 * SONG, 2 * SONG, resampled=True)
    block("dec.8x8_block0", 3 * SONG, SONG)
    block("dec.8x8_block1", 2 * SONG, SONG)
    norm("dec.8x8_aux_norm", SONG)
    conv("dec.8x8_aux_conv", 3, SONG, 3)
    return weights


def song_state(kind):
    state = {name: value / 4 for name, value in filled(song_shapes(kind)).items()}
    line = torch.tensor(TAPS[kind])
    plane = torch.outer(line, line)[None, None] / line.sum() ** 2
    return state | {name: plane for name in state if name.endswith("resample_filter")}


def song(p, kind, x, noise, y):
    """F of their network at c_noise for labels y; CLASSES stands for none."""
    plane = next(value for name, value in p.items() if name.endswith("resample_filter"))

    def halved(h, pad):
        return conv2d(h, plane.tile(h.shape[1], 1, 1, 1), groups=h.shape[1], stride=2, padding=pad)

    def doubled(h):
        pad = (plane.shape[-1] - 1) // 2
        return conv_transpose2d(h, 4 * plane.tile(h.shape[1], 1, 1, 1), groups=h.shape[1], stride=2, padding=pad)

    if kind == "ncsnpp":
        angle = noise[:, None] * 2 * torch.pi * p["map_noise.freqs"]
    else:
        half = NOISE[kind] // 2
        angle = noise[:, None] * (1 / 10000) ** (torch.arange(half).double() / (half - 1))
    one = (y[:, None] == torch.arange(CLASSES)).double() * CLASSES**0.5
    emb = torch.cat([angle.sin(), angle.cos()], 1) + linear(one, p["map_label.weight"], p["map_label.bias"])
    for name in ("map_layer0", "map_layer1"):
        emb = silu(linear(emb, p[f"{name}.weight"], p[f"{name}.bias"]))

    def norm(name, h):
        return group_norm(h, min(32, h.shape[1] // 4), p[f"{name}.weight"], p[f"{name}.bias"], 1e-6)

    def conv(name, h):
        w = p[f"{name}.weight"]
        return conv2d(h, w, p[f"{name}.bias"], padding=w.shape[-1] // 2)

    def block(name, h):
        def moved(h):
            down = name.endswith("_down")
            return halved(h, (plane.shape[-1] - 1) // 2) if down else doubled(h) if name.endswith("_up") else h

        out = conv(f"{name}.conv0", moved(silu(norm(f"{name}.norm0", h))))
        shift = linear(emb, p[f"{name}.affine.weight"], p[f"{name}.affine.bias"])[..., None, None]
        out = conv(f"{name}.conv1", silu(norm(f"{name}.norm1", out + shift)))
        out = (out + (conv(f"{name}.skip", moved(h)) if f"{name}.skip.weight" in p else h)) * 0.5**0.5
        if f"{name}.qkv.weight" not in p:
            return out
        q, k, v = conv(f"{name}.qkv", norm(f"{name}.norm2", out)).reshape(len(out), out.shape[1], 3, -1).unbind(2)
        w = torch.einsum("ncq,nck->nqk", q, k / out.shape[1] ** 0.5).softmax(2)
        return (out + conv(f"{name}.proj", torch.einsum("nqk,nck->ncq", w, v).reshape(out.shape))) * 0.5**0.5

    h = conv("enc.8x8_conv", x)
    kept = [h]
    for name in DOWN:
        h = block(f"enc.{name}", h)
        if kind == "ncsnpp" and name.endswith("_down"):
            w = p["enc.4x4_aux_residual.weight"]
            branch = halved(conv2d(x, w, padding=2), 0) + p["enc.4x4_aux_residual.bias"][:, None, None]
            h = (h + branch) * 0.5**0.5
        kept.append(h)
    for name in (*UP, "8x8_block0", "8x8_block1"):
        h = torch.cat([h, kept.pop()], 1) if "block" in name else h
        h = block(f"dec.{name}", h)
    return conv("dec.8x8_aux_conv", silu(norm("dec.8x8_aux_norm", h)))


@pytest.mark.parametrize("kind", TAPS)
@torch.no_grad()
def test_the_imported_song_unet_is_theirs(tmp_path, kind):
    state = song_state(kind)
    done = import_checkpoint(saved(tmp_path, state), out=tmp_path / "out")
    assert done.origin == "edm" and set(done.dropped.values()) == {"a fixed filter", "of augmentation in training"}
    pipeline = gen.load(tmp_path / "out")
    spec = pipeline.denoiser.net.spec
    assert (spec.filter, spec.residual, spec.attention) == (TAPS[kind], kind == "ncsnpp", (4,))
    net, g = pipeline.denoiser.net.double(), torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 3, 8, 8, generator=g).double(), torch.tensor([1, CLASSES])
    t = torch.tensor([0.3, 2.0]).double()
    expected = song({name: value.double() for name, value in state.items()}, kind, x, t.log() / 4, y)
    found = net(x, EDM().t_to_network(t), {"y": y})
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert float(expected.std()) > 0.01 and pipeline.sampler.steps == 18
    assert bool(torch.isfinite(gen.load(tmp_path / "out").sample(2, steps=2).x).all())


def test_shortcuts_of_the_picture_are_refused_by_name(tmp_path):
    state = song_state("ddpmpp") | {"enc.4x4_aux_skip.weight": torch.zeros(16, 3, 1, 1)}
    with pytest.raises(UserError, match="SongUNet with shortcuts of the picture"):
        import_checkpoint(saved(tmp_path, state), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()

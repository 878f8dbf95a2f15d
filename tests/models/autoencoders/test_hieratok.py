"""Token maps of several scales: which tokens see which, exactly; one scale as a plain ViT; digits from end to end."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import gen
from gen.cli import main
from gen.config.errors import UserError
from gen.config.spec import build
from gen.data.lib.latent_store import read_manifest
from gen.models.autoencoders.hieratok import HieraTok
from gen.models.layers.embed import grid_embedding

SMALL = {"channels": 1, "width": 16, "heads": 2, "hidden": 16}


def network(**fields):
    torch.manual_seed(0)
    return HieraTok(**{**SMALL, **fields}).build().double()


def test_coarse_tokens_know_nothing_of_finer_ones():
    """The Jacobian is exactly 0 where a token's scale is coarser, and nowhere else; the control's nowhere at all."""
    spec = {"size": 8, "scales": (1, 2, 4)}
    scale = torch.tensor([0] + [1] * 4 + [2] * 16)
    for causal in ("both", "encoder", "decoder", "none"):
        net = network(causal=causal, **spec)
        for half in ("encoder", "decoder"):
            vit = getattr(net, half)
            h = vit.sequence(torch.randn(1, 16, 4, 4, dtype=torch.float64))
            jacobian = torch.autograd.functional.jacobian(lambda h, vit=vit: vit.blocks(h)[0].sum(1), h)[:, 0]
            reached = jacobian.abs().amax(2) > 0  # [T out, T in]
            expected = scale[:, None] >= scale if causal in ("both", half) else torch.ones(21, 21, dtype=torch.bool)
            assert torch.equal(reached, expected), (causal, half)


def test_the_control_has_the_same_parameters():
    """Under one seed the same numbers, so that the two differ by the mask alone; and they do differ."""
    nets = [network(causal=causal, size=8, scales=(1, 2, 4)) for causal in ("both", "none")]
    ours, control = (net.state_dict() for net in nets)
    assert ours.keys() == control.keys() and all(torch.equal(ours[name], control[name]) for name in ours)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    assert (nets[0].encode(x).mean - nets[1].encode(x).mean).abs().max() > 1e-4
    published = HieraTok.preset("B/16")
    tokens = network(size=16, scales=published.scales, width=4, heads=1).decoder.positions
    assert published.tokens == len(tokens) == 1 + 4 + 16 + 64 + 256 == 341 and published.patch == 16


def test_scales_are_averages_and_positions_their_first_cells():
    net = network(size=16, scales=(1, 2, 8)).encoder
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    table = grid_embedding(16, 8).reshape(8, 8, 16)
    for side, start, vector in ((1, 0, 0), (2, 1, 1), (8, 5, 2)):
        cells = 8 // side
        averages = x.unflatten(3, (side, cells)).unflatten(2, (side, cells)).mean((3, 5))  # [B, width, side, side]
        known = table[::cells, ::cells].double() + net.vectors[vector]
        tokens = net.sequence(x)[:, start : start + side**2]
        torch.testing.assert_close(tokens, averages.flatten(2).mT + known.reshape(-1, 16), rtol=1e-12, atol=1e-12)


def plain(weights, half, finest, depth, heads):
    """Return what a plain ViT of these weights makes of a map: no scales, no mask."""
    of = {name.removeprefix(f"{half}."): w for name, w in weights.items() if name.startswith(half)}
    h = finest.flatten(2).mT + grid_embedding(finest.shape[1], finest.shape[2]).double()
    width = h.shape[-1:]

    def linear(name, h):
        return F.linear(h, of[f"{name}.weight"], of[f"{name}.bias"])

    for i in range(depth):
        at = f"layers.{i}"
        normed = F.layer_norm(h, width, of[f"{at}.layernorm_before.weight"], of[f"{at}.layernorm_before.bias"], 1e-12)
        parts = (linear(f"{at}.attention.attention.{name}", normed) for name in ("query", "key", "value"))
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + linear(f"{at}.attention.output.dense", attended)
        normed = F.layer_norm(h, width, of[f"{at}.layernorm_after.weight"], of[f"{at}.layernorm_after.bias"], 1e-12)
        h = h + linear(f"{at}.output.dense", F.gelu(linear(f"{at}.intermediate.dense", normed)))
    return linear("out", F.layer_norm(h, width, of["norm.weight"], of["norm.bias"], 1e-5))


@torch.no_grad()
def test_one_scale_is_a_plain_vit_to_the_bit():
    net = network(size=8, scales=(4,))
    weights, x = net.state_dict(), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    patches = F.conv2d(x, weights["patches.weight"], weights["patches.bias"], 2)
    mean = plain(weights, "encoder", patches, 2, 2)[..., :4].mT.unflatten(2, (4, 4))
    assert torch.equal(net.encode(x).mean, mean)
    embedded = F.conv2d(mean, weights["embedding.weight"], weights["embedding.bias"])
    pixels = plain(weights, "decoder", embedded, 2, 2)  # [B, T, 2 2]
    images = pixels.reshape(2, 4, 4, 2, 2).transpose(2, 3).reshape(2, 1, 8, 8)
    assert torch.equal(net.decode(mean), images)
    assert torch.equal(network(size=8, scales=(4,), causal="none").encode(x).mean, mean)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"scales": (2, 1)}, r"scales \(2, 1\); allowed: growing sides"),
        ({"scales": ()}, r"scales \(\); allowed: growing sides"),
        ({"scales": (1, 3, 4)}, r"scales \(1, 3, 4\); allowed: growing sides"),
        ({"size": 12}, r"HieraTok.size 12 must be divisible by scales\[-1\], 8"),
        ({"heads": 3}, "HieraTok.width 16 must be divisible by heads, 3"),
    ],
)
def test_scales_that_cannot_be_are_refused(fields, said):
    with pytest.raises(UserError, match=said):
        HieraTok(**{**SMALL, **fields})


def test_pictures_of_another_size_are_refused():
    net = network(size=8, scales=(1, 4))
    with pytest.raises(UserError, match=r"takes 8 x 8, these are \[1, 1, 16, 16\]"):
        net.encode(torch.zeros(1, 1, 16, 16, dtype=torch.float64))
    with pytest.raises(UserError, match=r"takes 4 x 4, these are \[1, 4, 8, 8\]"):
        net.decode(torch.zeros(1, 4, 8, 8, dtype=torch.float64))


@pytest.mark.slow
def test_digits_from_training_to_samples(tmp_path, monkeypatch):
    """It learns; its latents are trained on; what is sampled in them is decoded with their statistics."""
    monkeypatch.chdir(tmp_path)
    quiet = "--sample_every 0 --validate_every 0 --quiet"

    def run(line):
        assert main(line.split()) == 0, line

    model = "--model hieratok --model.preset digits"
    run(f"train autoencoder --data digits {model} --steps 60 --batch_size 64 --optim.lr 3e-3 --out vae {quiet}")
    run("encode digits --autoencoder vae --out latents --dtype float32 --quiet")
    net = build("models.autoencoders", {"name": "trained", "folder": "vae"}).load()
    data = gen.build("data", "digits").open("test")
    x = torch.stack([data[i]["x"] for i in range(64)])
    error = (net.decode(net.encode(x).mean) - x).square().mean()
    assert error < 0.5 * (x - x.mean(0)).square().mean()  # half of what the mean digit leaves
    dit = "--model dit --model.preset digits --model.patch 1 --model.width 16 --model.depth 1"
    run(f"train own --data ./latents --data.standardise channel {dit} --steps 1 --batch_size 4 --out dit {quiet}")
    pipeline = gen.load("dit")
    drawn = pipeline.sample(2, steps=1)
    channel = read_manifest(Path("latents"))["statistics"]["channel"]
    mean, var = (torch.tensor(channel[name]).reshape(-1, 1, 1) for name in ("mean", "var"))
    z = drawn.x * var.sqrt() + mean
    assert z.shape == (2, 2, 4, 4)
    torch.testing.assert_close(pipeline.decoded(drawn, "vae").x, net.decode(z), rtol=1e-4, atol=1e-5)

import math

import pytest
import torch
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from gen.diffusion.tap import FeatureRecorder, Skip
from gen.models.dimsum import DiMSUM
from gen.models.layers.dimsum import WaveletMamba, raster, windows
from gen.models.layers.embed import waves
from gen.models.layers.wavelet import packet

SMALL = DiMSUM(
    size=8,
    patch=2,
    channels=2,
    classes=5,
    width=16,
    depth=4,
    heads=4,
    shared_every=2,
    fusion_heads=2,
    levels=1,
    state=3,
)


def random_net(spec=SMALL, seed=0):
    """A network whose every part matters."""
    torch.manual_seed(seed)
    net = spec.build().double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return net.eval()


def inputs(n=3, spec=SMALL):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, spec.channels, spec.size, spec.size, generator=g, dtype=torch.float64)
    t = spec.t_end * torch.rand(n, generator=g, dtype=torch.float64)
    return x, t, {"y": torch.randint(0, spec.classes + 1, (n,), generator=g)}


def test_state_dict_has_the_published_names_and_shapes():
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in DiMSUM.preset("L/2").build().state_dict().items()}
    mamba = {
        "in_proj.weight": (2048, 512),
        "conv1d.weight": (1024, 1, 4),
        "conv1d.bias": (1024,),
        "x_proj.weight": (64, 1024),
        "dt_proj.weight": (1024, 32),
        "dt_proj.bias": (1024,),
        "A_log": (1024, 16),
        "D": (1024,),
        "cond_proj.weight": (1024, 1024),
        "cond_proj.bias": (1024,),
        "out_proj.weight": (512, 1024),
    }
    linear = {
        "proj.qkv1": (1536, 512),
        "proj.qkv2": (1536, 512),
        "proj.proj": (1024, 1024),
        "adaLN_modulation.1": (3072, 1024),
        "mlp.w12": (8192, 1024),
        "mlp.w3": (1024, 4096),
        "spatial_mamba.adaLN_modulation.1": (1536, 1024),
        "freq_mamba.adaLN_modulation.1": (1536, 1024),
    }
    expected = {"norm.weight": (1024,), "norm_2.weight": (1024,)}
    expected |= {f"{half}.mixer.{k}": v for half in ("spatial_mamba", "freq_mamba") for k, v in mamba.items()}
    expected |= {f"{k}.weight": v for k, v in linear.items()} | {f"{k}.bias": v[:1] for k, v in linear.items()}
    assert {k.removeprefix("blocks.15."): v for k, v in shapes.items() if k.startswith("blocks.15.")} == expected
    assert shapes["attn_block.mlp.w12.weight"] == (8192, 1024)
    assert sum(not k.startswith(("blocks.", "attn_block.")) for k in shapes) == 12
    assert sum(k.startswith("attn_block.") for k in shapes) == 10  # one, however many times it is used


def test_orders_of_scan():
    assert raster(3).tolist() == list(range(9))
    assert raster(3, transpose=True).tolist() == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert raster(3, reverse=True).tolist() == list(range(8, -1, -1))
    assert windows(4, 2).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert windows(4, 2, transpose=True).tolist() == [0, 4, 1, 5, 8, 12, 9, 13, 2, 6, 3, 7, 10, 14, 11, 15]


def wavelet(levels=2, mixed=True, transpose=False, width=6, side=8):
    return WaveletMamba(width, 4, 3, True, side, levels, mixed, transpose).double()


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("levels", [0, 1, 2])
@pytest.mark.parametrize("transpose", [True, False])
def test_bands_are_undone_and_hold_the_energy_over_p(levels, mixed, transpose):
    layer = wavelet(levels, mixed, transpose)
    h = torch.randn(2, 64, 6, dtype=torch.float64)
    bands = layer.bands(h)
    torch.testing.assert_close(layer.image(bands), h, rtol=0, atol=1e-12)
    torch.testing.assert_close(bands.square().sum(), h.square().sum() / 4**levels, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mixed", [True, False])
def test_where_the_bands_lie(mixed):
    """As the public code puts them, from its description: bands of the whole image, then a grid, then windows."""
    h = torch.randn(2, 64, 6, dtype=torch.float64)
    bands = packet(h.mT.reshape(2, 6, 8, 8), 2, 0.25).transpose(1, 2)  # [B, 16, channels, 2, 2]
    if mixed:  # (band, channel) is read as (channel, row in the square, column in the square)
        grid = bands.reshape(2, 6, 4, 4, 2, 2).permute(0, 4, 2, 5, 3, 1)
    else:
        grid = bands.reshape(2, 4, 4, 6, 2, 2).permute(0, 4, 1, 5, 2, 3)
    grid = grid.reshape(2, 64, 6)  # row by row
    torch.testing.assert_close(wavelet(mixed=mixed).bands(h), grid[:, windows(8, 2)], rtol=0, atol=1e-13)


def test_the_network_is_the_published_one():
    """Written again as the public code goes: a residual beside the tokens, and bands undone after the scan is added."""
    net, (x, t, cond) = random_net(), inputs()
    h = net.x_embedder["proj"](x).flatten(2).mT + net.pos_embed
    wave = waves(1 - t / (math.pi / 2), 256)
    c = net.t_embedder.mlp(wave) + net.y_embedder(cond["y"])

    def modulated(layer, h, parts=3):
        return [m[:, None] for m in layer.adaLN_modulation(c).chunk(parts, 1)]

    def scan(layer, h):
        shift, scale, gate = modulated(layer, h)
        return h + gate * layer.mixer(h * (1 + scale) + shift, c)

    residual = torch.zeros_like(h)
    for i, block in enumerate(net.blocks):
        residual = residual + h
        h = block.norm(residual)
        first, second = h.chunk(2, 2)
        order = raster(4, i % 4 >= 2, i % 2 > 0)
        first = scan(block.spatial_mamba, first[:, order])[:, order.argsort()]
        second = block.freq_mamba.image(scan(block.freq_mamba, block.freq_mamba.bands(second)))
        fusion = block.proj
        q, k, v = zip(
            *(
                f(half).reshape(3, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
                for f, half in ((fusion.qkv1, first), (fusion.qkv2, second))
            ),
            strict=True,
        )
        looked = [scaled_dot_product_attention(q[a], k[1 - a], v[1 - a]).transpose(1, 2).flatten(2) for a in (0, 1)]
        h = h + fusion.proj(torch.cat(looked, 2))
        shift, scale, gate = modulated(block, h)
        a, b = block.mlp.w12(block.norm_2(h) * (1 + scale) + shift).chunk(2, 2)
        h = h + gate * block.mlp.w3(gelu(a, approximate="tanh") * b)
        if i % 2 == 1:
            one = net.attn_block
            s1, m1, g1, s2, m2, g2 = modulated(one, h, 6)
            h = h + g1 * one.attn(one.norm1(h) * (1 + m1) + s1)
            a, b = one.mlp.w12(one.norm2(h) * (1 + m2) + s2).chunk(2, 2)
            h = h + g2 * one.mlp.w3(gelu(a, approximate="tanh") * b)
    shift, scale = net.final_layer.adaLN_modulation[1](silu(c))[:, None].chunk(2, 2)
    image = net.final_layer.linear(net.final_layer.norm_final(h) * (1 + scale) + shift)
    image = image.reshape(3, 4, 4, 2, 2, 2).permute(0, 5, 1, 3, 2, 4).reshape(3, 2, 8, 8)
    torch.testing.assert_close(net(x, t, cond), image, rtol=0, atol=1e-11)


def test_sites_and_leaving_out_the_last_block():
    net, (x, t, cond) = random_net(), inputs()
    record = FeatureRecorder()
    net(x, t, cond, tap=record)
    inner = {"", ".attn", ".attn.spatial", ".attn.wavelet", ".mlp"}
    shared = {".shared", ".shared.attn", ".shared.attn.raw", ".shared.mlp", ".shared.mlp.raw"}
    for i in range(4):
        found = {site.removeprefix(f"blocks.{i}") for site in record.features if site.startswith(f"blocks.{i}")}
        assert found == inner | (shared if i % 2 else set())
    skipped = FeatureRecorder(("trunk",))
    net(x, t, cond, tap=lambda site, f, h: skipped(site, lambda h: Skip(("blocks.3",))(site, f, h), h))
    torch.testing.assert_close(skipped.features["trunk"], record.features["hidden.2"], rtol=0, atol=1e-12)


def test_the_final_norm_reads_the_sum_of_all_blocks():
    plain, normed = random_net(), random_net(DiMSUM(**{**vars(SMALL), "final_norm": True}))
    x, t, cond = inputs()
    normed.load_state_dict(plain.state_dict(), strict=False)
    record = FeatureRecorder(("hidden.*", "trunk", "blocks.3"))
    normed(x, t, cond, tap=record)
    total = record.features["hidden.2"] + record.features["blocks.3"]
    torch.testing.assert_close(record.features["trunk"], normed.norm_f(total), rtol=0, atol=1e-12)
    assert not torch.allclose(normed(x, t, cond), plain(x, t, cond))


def test_whole_images_lose_a_block_in_training_at_its_rate():
    net, (x, t, cond) = random_net(DiMSUM(**{**vars(SMALL), "drop_path": 0.6})), inputs(1)
    net.train()
    many = (x.expand(400, -1, -1, -1), t.expand(400), {"y": cond["y"].expand(400)})
    record = FeatureRecorder(("hidden.*", "blocks.*"))
    net(*many, tap=record)
    for i, rate in enumerate((0, 0.2, 0.4)):
        added = record.features[f"blocks.{i}"].flatten(1)
        lost = added.abs().amax(1) == 0
        assert abs(lost.double().mean().item() - rate) <= 4 * (rate * (1 - rate) / 400) ** 0.5
    first = record.features["blocks.1"].flatten(1)
    kept = first[first.abs().amax(1) > 0]
    net.eval()
    net(x, t, cond, tap=record)
    torch.testing.assert_close(kept[0], record.features["blocks.1"][0].flatten() / 0.8, rtol=0, atol=1e-12)


def test_the_condition_can_reach_the_mambas_by_their_modulation_alone():
    net = DiMSUM(**{**vars(SMALL), "condition": False}).build()
    assert not any("cond_proj" in name for name in net.state_dict())


def test_a_fresh_network_is_zero_and_mamba_keeps_its_own_start():
    net = DiMSUM.preset("digits").build()
    assert net(torch.randn(2, 1, 8, 8), torch.rand(2), {"y": torch.tensor([0, 10])}).abs().max() == 0
    mixer = net.blocks[0].freq_mamba.mixer
    step = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert step.min() >= 1e-4 and step.max() <= 0.1 + 1e-6
    assert torch.equal(mixer.A_log[0].exp().round(), torch.arange(1.0, net.spec.state + 1))

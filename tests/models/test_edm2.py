import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from gen.config import checkpoints
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import EDMPrecond
from gen.diffusion.path import EDM
from gen.diffusion.tap import Chain, FeatureRecorder, Skip
from gen.models.edm2 import EDM2
from gen.models.layers.magnitude import MPConv, magnitude, mp_silu, mp_sum
from gen.training.ema import Classic
from gen.training.optim import parameter_groups
from gen.training.trainer import train
from tests.gen.tiny import tiny

SMALL = EDM2(
    size=8, channels=3, classes=5, width=16, multipliers=(1, 2), blocks=1, attention=(4,), head_width=16, uncertainty=8
)


def random_net(spec=SMALL, seed=0, dtype=torch.float64):
    """A network whose gains are not zero."""
    torch.manual_seed(seed)
    net = spec.build().to(dtype)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.endswith("gain"):
                weight.normal_()
    return net.eval()


def inputs(n=4, spec=SMALL, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, spec.channels, spec.size, spec.size, generator=g, dtype=dtype)
    t = torch.randn(n, generator=g, dtype=dtype) / 4
    return x, t, {"y": torch.randint(0, spec.classes + 1, (n,), generator=g)}


def test_state_dict_has_the_published_names_and_shapes():
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in SMALL.build().state_dict().items()}

    def block(name, width, out, inner, attn=False):
        found = {"emb_gain": (), "conv_res0.weight": (out, inner, 3, 3), "emb_linear.weight": (out, 32)}
        found |= {"conv_res1.weight": (out, out, 3, 3)}
        found |= {"conv_skip.weight": (out, width, 1, 1)} if width != out else {}
        found |= {"attn_qkv.weight": (3 * out, out, 1, 1), "attn_proj.weight": (out, out, 1, 1)} if attn else {}
        return {f"unet.{name}.{k}": v for k, v in found.items()}

    expected = {"unet.out_gain": (), "unet.emb_fourier.freqs": (16,), "unet.emb_fourier.phases": (16,)}
    expected |= {"unet.emb_noise.weight": (32, 16), "unet.emb_label.weight": (32, 5)}
    expected |= {"unet.enc.8x8_conv.weight": (16, 4, 3, 3), "unet.out_conv.weight": (3, 16, 3, 3)}
    expected |= block("enc.8x8_block0", 16, 16, 16) | block("enc.4x4_down", 16, 16, 16)
    expected |= block("enc.4x4_block0", 16, 32, 32, attn=True)  # the width changes first on the way down
    expected |= block("dec.4x4_in0", 32, 32, 32, attn=True) | block("dec.4x4_in1", 32, 32, 32)
    expected |= block("dec.4x4_block0", 64, 32, 64, attn=True) | block("dec.4x4_block1", 48, 32, 48, attn=True)
    expected |= block("dec.8x8_up", 32, 32, 32)
    expected |= block("dec.8x8_block0", 48, 16, 48) | block("dec.8x8_block1", 32, 16, 32)
    expected |= {"logvar_fourier.freqs": (8,), "logvar_fourier.phases": (8,), "logvar_linear.weight": (1, 8)}
    assert shapes == expected


def test_fresh_net_returns_zero_and_does_not_know_time_or_class():
    net = SMALL.build()
    x, t, cond = inputs(dtype=torch.float32)
    record = FeatureRecorder(("trunk",))
    assert net(x, t, cond, tap=record).abs().max() == 0
    first = record.features["trunk"]
    net(x, t - 1, net.null(cond), tap=record)
    assert torch.equal(record.features["trunk"], first)


def test_magnitudes_of_a_fresh_network():
    """Wide enough for the law of large numbers; within 15 per cent of 1 at every stage, attention aside."""
    torch.manual_seed(0)
    spec = EDM2(size=16, channels=4, classes=10, width=64, multipliers=(1, 2), blocks=1, attention=(), head_width=64)
    record = FeatureRecorder(("time", "encoder.*", "decoder.*"))
    g = torch.Generator().manual_seed(2)
    x, t = torch.randn(8, 4, 16, 16, generator=g), torch.randn(8, generator=g) / 4
    with torch.no_grad():
        spec.build().eval()(x, t, {"y": torch.arange(8)}, tap=record)
    found = {site: float(h.square().mean().sqrt()) for site, h in record.features.items()}
    assert len(found) == 1 + 4 + 5
    assert found == {site: pytest.approx(1, abs=0.15) for site in found}


def test_with_the_edm_parameterisation_it_is_the_published_denoiser():
    """D = c_skip x + c_out F(c_in x, ln(sigma) / 4), Karras et al. 2022, table 1, sigma_data .5."""
    net = random_net()
    x, _, cond = inputs()
    sigma = torch.tensor([0.002, 0.5, 3.0, 80.0], dtype=torch.float64)
    c = sigma[:, None, None, None]
    skip, out, scale = 0.25 / (c**2 + 0.25), 0.5 * c / (c**2 + 0.25).sqrt(), 1 / (c**2 + 0.25).sqrt()
    expected = skip * x * c + out * net(scale * x * c, sigma.log() / 4, cond)
    found = Denoiser(net, EDM(), EDMPrecond(sigma_data=0.5))(x * c, sigma, cond)
    torch.testing.assert_close(found.x0, expected, rtol=1e-12, atol=1e-12)


def weights_of(net):
    return [layer.weight for layer in net.modules() if isinstance(layer, MPConv)]


def test_a_pass_that_trains_rewrites_the_weights_and_no_other_does():
    net = random_net(dtype=torch.float32)
    x, t, cond = inputs(dtype=torch.float32)
    with torch.no_grad():
        for weight in weights_of(net):
            weight.mul_(3)
    before = [w.detach().clone() for w in weights_of(net)]
    first = net(x, t, cond)
    with torch.no_grad():
        net.train()(x, t, cond)
    assert all(torch.equal(w, b) for w, b in zip(weights_of(net), before, strict=True))
    trained = net(x, t, cond)
    for weight in weights_of(net):
        torch.testing.assert_close(magnitude(weight.detach()), torch.ones(len(weight), *[1] * (weight.ndim - 1)))
    assert (trained - first).norm() / first.norm() < 0.01  # the function is the same but for the eps
    (net(x, t, cond) + trained).sum().backward()  # two passes, one backward


def test_the_same_bits_after_a_stop_with_averages_and_validation(tmp_path):
    changes = {
        "model": EDM2.preset("digits", width=8, multipliers=(1, 1), head_width=8, dropout=0.1),
        "path": "edm",
        "parameterisation": "edm_precond",
        "objective": "uncertainty",
        "ema": (Classic(decay=0.9),),
        "steps": 4,
        "save_every": 2,
        "validate_every": 2,
    }
    train(tiny(**changes), tmp_path / "whole", quiet=True)
    train(tiny(**changes | {"steps": 2}), tmp_path / "parts", quiet=True)
    train(tiny(**changes), tmp_path / "parts", quiet=True)
    last = [checkpoints.read(tmp_path / f / "checkpoints/step-0000004")["files"] for f in ("whole", "parts")]
    assert last[0] == last[1] and "net-ema.safetensors" in last[0]  # the files' hashes


def test_compiled_it_says_and_rewrites_the_same():
    spec = replace(SMALL, multipliers=(1,), attention=())
    plain, compiled = random_net(spec, dtype=torch.float32).train(), random_net(spec, dtype=torch.float32).train()
    compiled.compile(backend="eager")
    x, t, cond = inputs(dtype=torch.float32)
    outs = [net(x, t, cond) for net in (plain, compiled)]
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-4, atol=1e-5)
    for net, out in zip((plain, compiled), outs, strict=True):
        out.square().mean().backward()
        for (name, p), q in zip(plain.named_parameters(), net.parameters(), strict=True):
            if not name.startswith("logvar"):
                torch.testing.assert_close(q, p)
                torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-6)


def test_no_class_is_a_row_of_zeros():
    net = random_net()
    _, t, cond = inputs()
    null = net.null(cond)
    assert null["y"].tolist() == [5] * 4
    c = net.unet.time(t)
    torch.testing.assert_close(net.unet.condition(c, null), mp_silu(mp_sum(c, torch.zeros_like(c), 0.5)))
    row = net.unet.emb_label.weight[:, 2]
    size = magnitude(net.unet.emb_label.weight)[:, 0] + 1e-4
    labelled = mp_silu(mp_sum(c, (row / size).expand_as(c), 0.5))  # ones of magnitude 1 select a column
    torch.testing.assert_close(net.unet.condition(c, {"y": torch.full((4,), 2)}), labelled, rtol=1e-6, atol=1e-6)


def test_attention_is_by_the_cosine():
    net = random_net()
    block = net.unet.enc["4x4_block0"]
    h = torch.randn(2, 32, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    qkv = block.attn_qkv(h).reshape(2, 2, 16, 3, 16)  # batch, head, channel, which, place
    q, k, v = (qkv[:, :, :, i] / (qkv[:, :, :, i].square().mean(2, keepdim=True).sqrt() + 1e-4) for i in range(3))
    weight = (torch.einsum("bhcq,bhck->bhqk", q, k) / 4).softmax(-1)
    mixed = torch.einsum("bhqk,bhck->bhcq", weight, v).reshape(2, 32, 4, 4)
    expected = (0.7 * h + 0.3 * block.attn_proj(mixed)) / math.hypot(0.7, 0.3)
    torch.testing.assert_close(h + block.attend(h), expected, rtol=1e-10, atol=1e-10)


def sites():
    blocks = {f"blocks.{i}{tail}" for i in range(10) for tail in ("", ".conv")}
    blocks |= {f"blocks.{i}.attn" for i in (2, 3, 5, 6)}
    values = {f"encoder.{i}" for i in range(4)} | {f"decoder.{i}" for i in range(5)}
    return blocks | values | {"time", "middle", "trunk", "final"}


def test_a_tap_that_only_looks_sees_every_site_and_changes_no_bit():
    net, (x, t, cond) = random_net(), inputs()
    record = FeatureRecorder()
    assert torch.equal(net(x, t, cond, tap=Chain((record, Skip(())))), net(x, t, cond))
    site = record.features
    assert set(site) == sites()
    assert site["middle"].shape == (4, 16, 32) and site["time"].shape == (4, 32)
    assert torch.equal(site["trunk"], site["decoder.4"])
    assert torch.equal(site["blocks.2"], site["blocks.2.conv"] + site["blocks.2.attn"])
    replay = Skip(("blocks.5",))
    assert torch.equal(net(x, t, cond, tap=replay), net(x, t, cond, tap=Skip(("blocks.5.*",))))


def test_the_way_down_and_the_way_up_are_their_formulas():
    """Down: each pixel is normalised before the branch. Up: the branch and the shortcut see what was kept, behind."""
    net, (x, t, cond) = random_net(), inputs()
    record = FeatureRecorder()
    net(x, t, cond, tap=record)
    site, c = record.features, net.unet.condition(record.features["time"], cond)

    def block(block, short, wide):
        scale = block.emb_linear(c, gain=block.emb_gain)[..., None, None] + 1
        branch = block.conv_res1(mp_silu(block.conv_res0(mp_silu(wide)) * scale))
        return (0.7 * short + 0.3 * branch) / (0.7**2 + 0.3**2) ** 0.5

    down = torch.nn.functional.avg_pool2d(site["encoder.1"], 2)
    down = down / (down.square().mean(1, keepdim=True).sqrt() + 1e-4)
    torch.testing.assert_close(site["encoder.2"], block(net.unet.enc["4x4_down"], down, down))
    before, kept = site["decoder.2"], site["encoder.1"]
    scale = ((32 + 16) / (0.5**2 + 0.5**2)) ** 0.5 / 2
    wide = torch.cat([before * scale / 32**0.5, kept * scale / 16**0.5], 1)
    up = net.unet.dec["8x8_block0"]
    torch.testing.assert_close(site["decoder.3"], block(up, up.conv_skip(wide), wide))


def test_skipping_a_block_of_the_middle_equals_a_net_without_it():
    net, (x, t, cond) = random_net(), inputs()
    record = FeatureRecorder(("middle", "encoder.3"))
    net(x, t, cond, tap=Chain((record, Skip(("blocks.3", "blocks.4")))))
    assert torch.equal(record.features["middle"], record.features["encoder.3"].flatten(2).mT)


def test_activations_are_bounded():
    spec = EDM2.preset("digits", clip=0.5)
    net, record = random_net(spec), FeatureRecorder(("encoder.1", "middle", "decoder.*"))
    net(*inputs(spec=spec), tap=record)
    assert all(h.abs().max() == 0.5 for h in record.features.values())


def test_dropout_is_for_training():
    net = random_net(EDM2.preset("digits", dropout=0.5))
    x, t, cond = inputs(spec=net.spec)
    assert torch.equal(net(x, t, cond), net(x, t, cond))
    net.train()
    assert not torch.equal(net(x, t, cond), net(x, t, cond))


def test_the_log_variance_is_a_function_of_time_and_may_be_left_out():
    net = random_net()
    t = inputs()[1]
    assert net.logvar(t).shape == (4,) and net.logvar(t).unique().numel() == 4
    assert random_net(EDM2.preset("digits")).logvar is None
    assert copy.deepcopy(net).logvar(t).equal(net.logvar(t))


def test_the_learning_rate_of_a_recipe_for_other_networks():
    (group,) = parameter_groups(EDM2.preset("digits").build())
    assert group["scale"] == 20
    assert [g["scale"] for g in parameter_groups(SMALL.build())] == [1]


class Elementwise(TorchDispatchMode):
    """Counts numbers that elementwise operations compute, in the weights of the authors' count_flops.py.

    Attributes:
        count: so far; of a norm the numbers that it reads.
    """

    def __init__(self):
        super().__init__()
        self.weights = {
            "silu": 3,
            "_safe_softmax": 3,
            "lerp": 2,
            "mul": 1,
            "div": 1,
            "add": 1,
            "sub": 1,
            "cos": 1,
            "clamp": 1,
        }
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__.rstrip("_")
        if name == "linalg_vector_norm":
            self.count += args[0].numel()
        elif name in self.weights:
            self.count += self.weights[name] * out.numel()
        return out


def test_operations_of_s_by_the_authors_rule():
    """They count the normalisation of the weights and other elementwise operations, too: 1 % of all."""
    with torch.device("meta"):
        net = EDM2.preset("EDM2-S").build().eval()
        given = torch.zeros(1, 4, 64, 64), torch.ones(1), {"y": torch.zeros(1, dtype=torch.int64)}
        products, others = FlopCounterMode(display=False), Elementwise()
        with products:
            net(*given)
        with others:
            net(*given)
    assert round(products.get_total_flops() / 2e9, 1) == 100.8
    assert round(products.get_total_flops() / 2e9 + others.count / 1e9, 1) == 101.9

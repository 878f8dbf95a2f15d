import copy
import dataclasses

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, spec_of
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import EDMPrecond, Velocity
from gen.diffusion.path import EDM, Flow
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import Chain, FeatureRecorder, Skip
from gen.models.ddt import DDT
from gen.models.dit import DiT
from gen.models.dit_dh import DiTDH
from gen.models.flow_map import FlowMap
from gen.models.lightning_dit import LightningDiT
from gen.samplers.caches.custom import Custom
from gen.samplers.solvers.heun import Heun
from gen.samplers.solvers.jump import Jump

DIT = DiT(size=8, patch=4, channels=2, classes=3, width=16, depth=2, heads=2)
INNERS = [
    DIT,
    LightningDiT(size=8, patch=4, channels=2, classes=3, width=16, depth=2, heads=2),
    DDT(size=8, patch=4, channels=2, classes=3, width=16, encoder=1, decoder=1, heads=2),
    DiTDH(
        size=8, patch=4, channels=2, classes=3, width=16, depth=1, heads=2, head_width=32, head_depth=1, head_heads=2
    ),
]
every_inner = pytest.mark.parametrize("inner", INNERS, ids=lambda spec: type(spec).__name__)


def inner_net(spec, seed=0):
    torch.manual_seed(seed)
    net = spec.build()
    for weight in net.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1)
    return net


def flow_map(spec, trained=True, **fields):
    """A flow map whose inner network is inner_net(spec); trained: its embedding of s has left zero."""
    torch.manual_seed(1)
    net = FlowMap(spec, **fields).build()
    net.load_state_dict(inner_net(spec).state_dict())
    for weight in net.target_embedder.mlp[2].parameters() if trained else ():
        torch.nn.init.normal_(weight, std=0.5)
    return net


def inputs(n=3, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    x, t, s = torch.randn(n, 2, 8, 8, generator=g), *torch.rand(2, n, generator=g)
    return x.to(dtype), t.to(dtype), {"y": torch.randint(0, 4, (n,), generator=g)}, (s * t).to(dtype)


@every_inner
@pytest.mark.parametrize("tell", ["target", "interval"])
def test_a_fresh_flow_map_is_its_inner_network_whatever_s_is(inner, tell):
    net, plain, (x, t, cond, s) = flow_map(inner, trained=False, tell=tell), inner_net(inner), inputs()
    expected = plain(x, t, cond)
    for target in (None, s, t, torch.zeros_like(t), torch.full_like(t, -torch.inf)):
        assert torch.equal(net(x, t, cond, s=target), expected)


@every_inner
@pytest.mark.parametrize("tell", ["target", "interval"])
def test_a_trained_one_uses_s_and_takes_none_for_t(inner, tell):
    net, (x, t, cond, s) = flow_map(inner, tell=tell), inputs()
    assert torch.equal(net(x, t, cond), net(x, t, cond, s=t))
    assert not torch.equal(net(x, t, cond), net(x, t, cond, s=s))
    assert not torch.equal(net(x, t, cond, s=0 * s), net(x, t, cond, s=s))
    out = net(x, t, cond, s=s)
    alone = net(x[1:2], t[1:2], {"y": cond["y"][1:2]}, s=s[1:2])
    torch.testing.assert_close(out[1:2], alone, rtol=1e-4, atol=1e-5)


@every_inner
def test_s_is_embedded_in_the_inner_network_s_conventions(inner):
    net = flow_map(inner)
    told = net.target_embedder
    assert (told.convention, told.scale) == (inner.time_convention, inner.time_scale)
    assert told.max_period == getattr(inner, "max_period", 10_000.0)
    (_, t, _, s), interval = inputs(), flow_map(inner, tell="interval")
    record = FeatureRecorder(("time",))
    interval(*inputs()[:3], s=s, tap=record)
    expected = interval.inner.t_embedder(t) + interval.target_embedder(t - s)
    torch.testing.assert_close(record.features["time"], expected)
    assert interval.target_embedder.convention == "noise"  # a length has no direction


def test_the_given_tap_is_the_outer_one():
    """What it sees at "time" has both embeddings; what it puts there is all that the network hears."""
    net, (x, t, cond, s) = flow_map(DIT), inputs()
    record = FeatureRecorder()
    expected = net(x, t, cond, s=s, tap=Chain((record, Skip(()))))
    assert torch.equal(expected, net(x, t, cond, s=s))
    both = net.inner.t_embedder(t) + net.target_embedder(s)
    assert torch.equal(record.features["time"], both)
    assert record.features.keys() >= {"trunk", "blocks.1.attn", "hidden.1", "final"}

    def deaf(site, compute, h):
        return both if site == "time" else compute(h)

    assert torch.equal(net(x, t / 3, cond, s=None, tap=deaf), expected)


def test_gradients_reach_the_new_embedding_and_then_all_of_it():
    net, (x, t, cond, s) = flow_map(DIT, trained=False), inputs()
    net(x, t, cond, s=s).square().mean().backward()
    grads = {name: p.grad.abs().max() for name, p in net.target_embedder.named_parameters()}
    assert grads["mlp.2.weight"] > 0 and grads["mlp.0.weight"] == 0  # behind a zero
    net = flow_map(DIT)
    net(x, t, cond, s=s).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for p in net.target_embedder.parameters())


@every_inner
def test_as_a_denoiser_with_solvers_of_one_time_and_of_two(inner):
    net, (x, t, cond, _) = flow_map(inner).double().eval(), inputs(dtype=torch.float64)
    f = Denoiser(net, Flow(), Velocity())
    zero = torch.tensor(0.0, dtype=torch.float64)
    jumped, slope = f(x, t, cond, s=zero), f(x, t, cond)
    assert not torch.equal(jumped.x0, slope.x0)
    assert torch.equal(slope.x0, f(x, t, cond, s=t).x0)
    torch.testing.assert_close((1 - t[:, None, None, None]) * jumped.x0 + t[:, None, None, None] * jumped.eps, x)
    grid = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    with torch.no_grad():
        by_hand = f.path.interpolate(f(x, grid[0], cond, s=grid[1]), grid[1])
        by_hand = f.path.interpolate(f(by_hand, grid[1], cond, s=grid[2]), grid[2])
        assert torch.equal(integrate(f, x, grid, Jump(), cond=cond), by_hand)
        assert integrate(f, x, grid, Heun(), cond=cond).isfinite().all()
        one = Custom(policy={"name": "interval", "interval": 1}, sites=("time", "trunk")).start(2)
        assert torch.equal(integrate(f, x, grid, Jump(), cond=cond, tap=one), by_hand)


def test_a_jump_to_the_data_on_a_path_that_calls_it_minus_infinity():
    net, (x, _, cond, _) = flow_map(DIT).eval(), inputs()
    f, t = Denoiser(net, EDM(), EDMPrecond()), torch.tensor(2.0, dtype=torch.float64)
    with torch.no_grad():
        assert f(x, t, cond, s=torch.tensor(0.0, dtype=torch.float64)).x0.isfinite().all()
        assert torch.equal(net(x, x[:, 0, 0, 0], cond, s=torch.full((3,), -torch.inf)),
                           net(x, x[:, 0, 0, 0], cond, s=torch.full((3,), -4.0)))  # fmt: skip


def test_weights_go_in_alone_or_whole():
    net, fresh = flow_map(DIT), FlowMap(DIT).build()
    before = copy.deepcopy(fresh.target_embedder.state_dict())
    fresh.load_state_dict(inner_net(DIT).state_dict())
    assert all(torch.equal(v, before[k]) for k, v in fresh.target_embedder.state_dict().items())
    fresh.load_state_dict(net.state_dict())
    x, t, cond, s = inputs()
    assert torch.equal(fresh(x, t, cond, s=s), net(x, t, cond, s=s))
    part = {name: w for name, w in net.state_dict().items() if not name.startswith("target_embedder")}
    with pytest.raises(RuntimeError, match=r"Missing key.*target_embedder"):
        fresh.load_state_dict(part)
    with pytest.raises(RuntimeError, match="Missing key"):
        fresh.load_state_dict({"pos_embed": fresh.inner.pos_embed})


def test_specs():
    spec = FlowMap(DIT, tell="interval")
    assert (spec.size, spec.channels, spec.classes) == (8, 2, 3)
    assert build("models", spec_of(spec)) == spec
    assert FlowMap({"name": "ddt", "preset": "digits"}) == FlowMap(DDT.preset("digits"))
    assert FlowMap.preset("SiT-B/2", classes=5, tell="interval") == FlowMap(
        DiT.preset("SiT-B/2", classes=5), tell="interval"
    )
    for name in FlowMap.presets:
        assert FlowMap.preset(name) == FlowMap(**FlowMap.presets[name]) == FlowMap(DiT.preset(name))
    with pytest.raises(UserError, match="is of FlowMap already"):
        FlowMap(spec)
    with pytest.raises(UserError, match="unknown preset 'XL/3'"):
        FlowMap.preset("XL/3")
    with pytest.raises(UserError, match="dat"):
        FlowMap("dat")


def test_what_an_inner_network_says_of_itself_is_passed_on():
    net = flow_map(DIT)
    assert net.state_shape == (2, 8, 8) and net.lr_scales() == {}
    x = inputs()[0]
    assert net.image(x) is x
    net.inner.lr_scales = lambda: {"pos_embed": 0.5}
    net.inner.state_shape, net.inner.image = (7,), lambda x: x[:1]
    assert net.lr_scales() == {"inner.pos_embed": 0.5}
    assert net.state_shape == (7,) and len(net.image(x)) == 1
    assert net.null({"y": torch.tensor([0, 1])})["y"].tolist() == [3, 3]


class Timeless(torch.nn.Module):
    """Has no site "time"."""

    def __init__(self, spec):
        super().__init__()
        self.spec = spec

    def forward(self, x, t, cond, *, s=None, tap=None):
        return x


@dataclasses.dataclass(frozen=True)
class TimelessSpec:
    size: int = 8
    channels: int = 1
    classes: int = 0

    def build(self):
        return Timeless(self)


def test_a_network_that_tells_no_time_is_refused():
    with pytest.raises(UserError, match="TimelessSpec has no site 'time'"):
        FlowMap(TimelessSpec()).build()


def test_wrong_targets_fail_in_one_line():
    net, (x, t, cond, s) = flow_map(DIT), inputs()
    for wrong in (s[:2], s[0], s[:, None]):
        with pytest.raises(UserError, match=r"s has shape .*; it must be that of t, \[3\]"):
            net(x, t, cond, s=wrong)
    with pytest.raises(UserError, match="this DiT takes"):
        net(x[:, :1], t, cond, s=s)


def test_averages_copy_it():
    net, (x, t, cond, s) = flow_map(DIT), inputs()
    copied = copy.deepcopy(net)
    copied.load_state_dict(net.state_dict())
    assert torch.equal(copied(x, t, cond, s=s), net(x, t, cond, s=s))
    assert dataclasses.replace(net.spec) == copied.spec

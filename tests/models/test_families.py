"""The laws of every family of denoisers, at the size that its preset "digits" has."""

import json
from dataclasses import replace

import pytest
import torch

from gen.config.errors import UserError
from gen.config.spec import build, find, names, spec_of
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import X0, EDMPrecond, Eps, V, Velocity
from gen.diffusion.path import EDM, VP, Flow, Trig
from gen.diffusion.sampling import integrate
from gen.diffusion.tap import Chain, FeatureRecorder, Skip
from gen.models.dit import DiT

FAMILIES = [name for name in names("models") if hasattr(find(name, "models"), "channels")]  # text has none
PRESETS = [(name, preset) for name in FAMILIES for preset in find(name, "models").presets]
LARGE = [  # one of each family in a minute's work, all of them with the slow tests
    pytest.param(*both, marks=() if both == next(p for p in PRESETS if p[0] == both[0]) else pytest.mark.slow)
    for both in PRESETS
]


def digits(name, **changes):
    return find(name, "models").preset("digits", **changes)


def random_net(spec, seed=0, dtype=torch.float64):
    """A network whose every part matters: what starts at zero does not stay there."""
    torch.manual_seed(seed)
    net = spec.build().to(dtype).eval()
    with torch.no_grad():
        for weight in net.parameters():
            if weight.requires_grad and weight.std(correction=0) == 0:
                weight.add_(0.1 * torch.randn_like(weight))
    return net


def inputs(net, n=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    shape = getattr(net, "state_shape", (net.spec.channels, net.spec.size, net.spec.size))
    x = torch.randn(n, *shape, generator=g, dtype=dtype)
    t = 0.05 + 0.9 * torch.rand(n, generator=g, dtype=dtype)
    return x, t, {"y": torch.randint(0, 10, (n,), generator=g)}


def count(net):
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_digits_preset_is_as_large_as_the_others(name):
    spec = digits(name)
    assert (spec.size, spec.channels, spec.classes) == (8, 1, 10)
    assert count(spec.build()) == pytest.approx(count(DiT.preset("digits").build()), rel=0.1)
    assert build("models", {"name": name, "preset": "digits"}) == spec
    assert build("models", json.loads(json.dumps(spec_of(spec)))) == spec


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_does_not_depend_on_its_batch(name):
    net = random_net(digits(name))
    x, t, cond = inputs(net)
    together = net(x, t, cond)
    assert together.shape == x.shape and together.std() > 0
    for i in range(len(x)):
        alone = net(x[i : i + 1], t[i : i + 1], {"y": cond["y"][i : i + 1]})
        torch.testing.assert_close(alone[0], together[i], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tap_that_only_looks_changes_no_bit_and_sees_the_time(name):
    net = random_net(digits(name))
    x, t, cond = inputs(net)
    record = FeatureRecorder()
    assert torch.equal(net(x, t, cond, tap=Chain((record, Skip(())))), net(x, t, cond))
    assert record.features["time"].shape[0] == len(x)
    assert any(site.startswith("blocks.") for site in record.features)


@pytest.mark.parametrize("name", FAMILIES)
def test_leaving_out_every_block_changes_the_answer(name):
    net = random_net(digits(name))
    x, t, cond = inputs(net)
    skipped = net(x, t, cond, tap=Skip(("blocks.*",)))
    assert skipped.isfinite().all() and not torch.equal(skipped, net(x, t, cond))


@pytest.mark.parametrize("name", FAMILIES)
def test_time_and_label_matter_and_null_is_another_label(name):
    net = random_net(digits(name))
    x, t, cond = inputs(net)
    out = net(x, t, cond)
    assert not torch.equal(out, net(x, t / 2, cond))
    null = net.null({**cond, "text": x})
    assert null["y"].tolist() == [10] * len(x) and null["text"] is x
    assert not torch.equal(out, net(x, t, null))
    unlabelled = random_net(digits(name, classes=0))
    assert unlabelled.null({}) == {}
    assert unlabelled(x, t, {}).isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_reach_every_trainable_weight(name):
    net = random_net(digits(name)).train()
    x, t, cond = inputs(net)
    loss = net(x, t, cond).square().mean()
    if name == "cooperative":  # of its two networks this is the other one
        loss = loss + net(x, t, cond, s=t / 2).square().mean()
    loss.backward()
    missing = [n for n, p in net.named_parameters() if p.requires_grad and (p.grad is None or p.grad.abs().max() == 0)]
    assert not missing


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_weights(name):
    exact, rounded = random_net(digits(name)), random_net(digits(name)).bfloat16()
    x, t, cond = inputs(exact)
    out = rounded(x.bfloat16(), t.float(), cond)
    assert out.dtype == torch.bfloat16
    assert (out.double() - exact(x, t, cond)).norm() / exact(x, t, cond).norm() < 0.1


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("wrong", ["size", "times", "label", "target"])
def test_wrong_input_is_one_line(name, wrong):
    net = digits(name).build()
    x, t, cond = inputs(net, dtype=torch.float32)
    s = None
    if wrong == "size":
        x = torch.cat([x, x], -1)
    elif wrong == "times":
        t = t[:2]
    elif wrong == "label":
        cond = {}
    elif name in ("flow_map", "cooperative"):
        s = t[:2]
    else:
        s = t
    with pytest.raises(UserError) as caught:
        net(x, t, cond, s=s)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "preset"), LARGE, ids=lambda v: str(v))
def test_every_preset_runs_on_the_meta_device(name, preset):
    spec = find(name, "models").preset(preset)
    with torch.device("meta"):
        net = spec.build()
        shape = getattr(net, "state_shape", (spec.channels, spec.size, spec.size))
        cond = {"y": torch.zeros(2, dtype=torch.int64)} if spec.classes else {}
        assert net(torch.zeros(2, *shape), torch.zeros(2), cond).shape == (2, *shape)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("path", "param"),
    [
        (Flow(), Velocity()),
        (Flow(), Velocity(toward="data")),
        (VP(), Eps()),
        (Flow(), X0()),
        (Trig(), V()),
        (EDM(), EDMPrecond()),
    ],
    ids=lambda v: repr(v),
)
def test_dry_run(name, path, param):
    """Two steps from noise to data, guided towards nothing: every family on every path and parameterisation."""
    net = random_net(digits(name), dtype=torch.float32)
    x, _, cond = inputs(net, 2, torch.float32)
    grid = torch.linspace(0.9 * path.t1, 0, 3, dtype=torch.float64)
    out = integrate(
        Denoiser(net, path, param), path.start(x, grid[0]), grid, build("samplers.solvers", "euler"), cond=cond
    )
    assert out.shape == x.shape and out.isfinite().all()


def test_a_preset_with_changes_and_an_unknown_one():
    assert build("models", {"name": "dit", "preset": "XL/2", "channels": 16}) == replace(
        DiT.preset("XL/2"), channels=16
    )
    with pytest.raises(UserError, match="unknown preset 'XL/3' of DiT"):
        build("models", {"name": "dit", "preset": "XL/3"})

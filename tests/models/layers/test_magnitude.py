"""Random numbers of magnitude 1 go in; what comes out has magnitude 1 within the stated per cents."""

import copy
import math

import pytest
import torch
from torch import nn

from gen.models.layers.magnitude import (
    MPConv,
    MPFourier,
    magnitude,
    mp_add,
    mp_cat,
    mp_silu,
    mp_sum,
    normalise,
    normalise_weights,
)


def rms(x):
    return float(x.detach().square().mean().sqrt())


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_silu_keeps_the_magnitude_of_normal_numbers():
    assert rms(mp_silu(normal(1_000_000))) == pytest.approx(1, abs=0.003)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_sums_and_joints_keep_it(t):
    a, b = normal(200_000, 2), normal(200_000, 5, seed=1)
    assert rms(mp_sum(a, b[:, :2], t)) == pytest.approx(1, abs=0.01)
    joined = mp_cat(a, b, t)
    assert joined.shape == (200_000, 7) and rms(joined) == pytest.approx(1, abs=0.01)
    # t is what b counts for: its share of the energy is t^2 beside (1 - t)^2, whatever the widths
    share = float(joined[:, 2:].square().sum() / joined.square().sum())
    assert share == pytest.approx(t**2 / (t**2 + (1 - t) ** 2), abs=0.01)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_what_is_added_makes_the_sum(t):
    a, b = normal(100), normal(100, seed=1)
    torch.testing.assert_close(a + mp_add(a, b, t), mp_sum(a, b, t), rtol=1e-14, atol=1e-14)
    assert torch.equal(mp_add(a, b, 0.0), torch.zeros_like(a))


def test_waves_have_magnitude_one_and_stay_the_same():
    waves = MPFourier(4000, bandwidth=2.0)
    t = torch.tensor([-1.5, 0.0, 0.7], dtype=torch.float64)
    out = waves(t)
    assert out.dtype == torch.float64 and out.abs().max() <= math.sqrt(2)
    for row in out:
        assert rms(row) == pytest.approx(1, abs=0.03)
    assert torch.equal(out, waves(t)) and not list(waves.parameters())
    torch.testing.assert_close(waves(t.float()).double(), out, atol=1e-4, rtol=0)
    assert waves.freqs.std() / (2 * math.pi) == pytest.approx(2.0, rel=0.05)


def test_linear_and_convolution_keep_it_whatever_the_weights_length():
    torch.manual_seed(0)
    linear, conv = MPConv(300, 200).double(), MPConv(40, 50, 3, 3).double()
    x, image = normal(500, 300), normal(8, 40, 18, 18)
    assert rms(linear(x)) == pytest.approx(1, abs=0.01)
    assert rms(conv(image)[..., 1:-1, 1:-1]) == pytest.approx(1, abs=0.01)  # zeros come in at the rim
    before, both = linear(x), linear(x, gain=torch.tensor(0.5))
    torch.testing.assert_close(both, before / 2)
    with torch.no_grad():
        linear.weight.mul_(torch.linspace(0.5, 20, 200)[:, None])
    torch.testing.assert_close(linear(x), before, rtol=3e-4, atol=1e-12)  # but for the eps of 1e-4


def test_a_pixel_at_its_unit():
    x = 7 * normal(4, 64, 3, 3)
    size = magnitude(normalise(x, dim=1), dim=1)
    torch.testing.assert_close(size, 1 - 1e-4 / magnitude(x, dim=1), rtol=1e-7, atol=0)
    assert torch.equal(normalise(torch.zeros(2, 3)), torch.zeros(2, 3))


def test_the_gradient_is_at_right_angles_to_every_weight_vector():
    layer = MPConv(20, 10, 3, 3).double()
    normalise_weights(layer)
    layer(normal(4, 20, 6, 6)).square().mean().backward()
    along = (layer.weight.grad * layer.weight).flatten(1).sum(1).abs()
    assert (
        along < 1e-3 * layer.weight.grad.flatten(1).norm(dim=1) * layer.weight.detach().flatten(1).norm(dim=1)
    ).all()


@pytest.mark.parametrize("shape", [(64, 5, 3, 3), (3, 2000), (48, 1792, 3, 3), (7, 3), (16, 1)])
@pytest.mark.parametrize("length", [1e-3, 1.0, 3.7, 1e4])
def test_forced_weights_have_magnitude_one_and_stay_so_to_the_bit(shape, length):
    layer = MPConv(shape[1], shape[0], *shape[2:])
    layer.weight.data.mul_(length)
    normalise_weights(layer)
    once = layer.weight.detach().clone()
    torch.testing.assert_close(magnitude(once), torch.ones_like(magnitude(once)), rtol=0, atol=1e-5)
    normalise_weights(layer)
    assert torch.equal(layer.weight, once)


def test_forcing_leaves_other_layers_and_zero_rows_alone():
    net = nn.Sequential(MPConv(4, 3), nn.Linear(3, 2))
    net[0].weight.data[1] = 0
    linear = net[1].weight.detach().clone()
    normalise_weights(net)
    assert torch.equal(net[1].weight, linear)
    assert torch.equal(net[0].weight[1], torch.zeros(4)) and net(torch.ones(1, 4)).isfinite().all()


def test_two_passes_before_one_backward_pass():
    layer = MPConv(6, 5).double()
    other, (x, z) = copy.deepcopy(layer), (normal(3, 6), normal(3, 6, seed=1))

    def loss(layer, x):
        normalise_weights(layer)
        return layer(x).square().sum()

    (loss(layer, x) + loss(layer, z)).backward()
    for each in (x, z):
        loss(other, each).backward()
    torch.testing.assert_close(layer.weight.grad, other.weight.grad, rtol=1e-14, atol=1e-14)

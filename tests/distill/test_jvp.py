"""Derivatives along a line: forward mode equals central differences on every kind of network."""

import pytest
import torch

from gen.config.errors import UserError
from gen.diffusion.denoiser import Denoiser
from gen.diffusion.parameterisation import Velocity
from gen.diffusion.path import Flow
from gen.distillers.lib.jvp import directional_derivative
from gen.models.dit import DiT
from gen.models.flow_map import FlowMap
from gen.models.mlp import MLP
from gen.models.ssm import SSM

DIT = DiT(size=4, patch=2, channels=1, classes=0, width=16, depth=2, heads=2, time_scale=10.0)
NETS = {
    "mlp": MLP(channels=1, size=4, width=16, depth=2, time_scale=10.0),
    "dit": DIT,
    "dit with norms of q and k": DiT(size=4, patch=2, channels=1, classes=0, width=16, depth=1, heads=2, qk_norm=True),
    "flow map": FlowMap(DIT, tell="interval"),
}


def net(spec, dtype=torch.float64):
    torch.manual_seed(0)
    made = spec.build().to(dtype)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return made


def line(dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x, dx = torch.randn(2, 3, 1, 4, 4, generator=g, dtype=torch.float64).to(dtype)
    t, dt = torch.rand(2, 3, generator=g, dtype=torch.float64)
    return x, t, dx, dt


@pytest.mark.parametrize("spec", NETS.values(), ids=NETS)
def test_forward_mode_equals_central_differences(spec):
    f, (x, t, dx, dt) = Denoiser(net(spec), Flow(), Velocity()), line()

    s = 0.5 * t if isinstance(spec, FlowMap) else None

    def u(x, t):
        pred = f(x, t, s=s)
        return pred.eps - pred.x0

    exact, near = directional_derivative(u, x, t, dx, dt), directional_derivative(u, x, t, dx, dt, "difference")
    assert exact.norm() > 1e-2
    assert (exact - near).norm() < 1e-5 * exact.norm()
    assert not exact.requires_grad and not near.requires_grad


def test_state_space_mixers_have_forward_mode():
    spec = SSM(size=4, patch=2, channels=1, classes=0, width=16, depth=1)
    f, (x, t, dx, dt) = net(spec), line()
    exact = directional_derivative(lambda x, t: f(x, t, {}), x, t, dx, dt)
    near = directional_derivative(lambda x, t: f(x, t, {}), x, t, dx, dt, "difference")
    assert exact.norm() > 1e-2
    assert (exact - near).norm() < 1e-5 * exact.norm()


def test_both_are_right_on_a_known_function():
    x, t, dx, dt = line()

    def f(x, t):
        return x**2 * t.sin()[:, None, None, None]

    a, b = ((v[:, None, None, None]) for v in (t, dt))
    exact = 2 * x * dx * a.sin() + x**2 * a.cos() * b
    torch.testing.assert_close(directional_derivative(f, x, t, dx, dt), exact, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(directional_derivative(f, x, t, dx, dt, "difference"), exact, rtol=1e-7, atol=1e-7)


def test_both_sides_of_a_difference_have_the_same_dropout():
    x, t, dx, dt = line()
    torch.manual_seed(3)
    got = directional_derivative(lambda x, t: torch.nn.functional.dropout(x, 0.5), x, t, dx, dt, "difference")
    share = got / dx
    assert torch.allclose(share.round(), share, atol=1e-6) and set(share.round().unique().tolist()) == {0.0, 2.0}


def test_differences_in_low_precision_are_refused():
    x, t, dx, dt = line(torch.float32)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UserError, match="set precision no, or derivative jvp"):
        directional_derivative(lambda x, t: x, x, t, dx, dt, "difference")

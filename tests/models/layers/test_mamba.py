"""Mamba: the published computation around the selective scan, in one direction and both."""

import pytest
import torch

from gen.config.errors import UserError
from gen.kernels.selective_scan import selective_scan
from gen.models.layers.ssm.mamba import Mamba


def test_mamba_is_the_published_computation():
    """Written out anew with PyTorch's own convolution and the sequential scan."""
    net = Mamba(32, state=4).double()
    h = torch.randn(2, 9, 32, dtype=torch.float64)
    u, z = (h @ net.in_proj.weight.T).chunk(2, -1)
    u = torch.nn.functional.silu(net.conv1d(u.mT)[..., :9].mT)
    dt, B, C = net.x_proj(u).split([2, 4, 4], -1)
    delta = torch.nn.functional.softplus(net.dt_proj(dt))
    y = selective_scan.only("reference")(u, delta, -net.A_log.exp(), B, C) + u * net.D
    torch.testing.assert_close(net(h), net.out_proj(y * torch.nn.functional.silu(z)), rtol=1e-12, atol=1e-12)


def test_mamba_starts_as_published():
    net = Mamba(64)
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert shapes == {
        "A_log": (128, 16),
        "D": (128,),
        "in_proj.weight": (256, 64),
        "conv1d.weight": (128, 1, 4),
        "conv1d.bias": (128,),
        "x_proj.weight": (36, 128),
        "dt_proj.weight": (128, 4),
        "dt_proj.bias": (128,),
        "out_proj.weight": (64, 128),
    }
    assert torch.equal(net.A_log.exp().round(), torch.arange(1.0, 17).expand(128, 16))
    dt = torch.nn.functional.softplus(net.dt_proj.bias)
    assert dt.min() * (1 + 1e-4) >= 1e-3 and dt.max() <= 0.1 * (1 + 1e-4) and dt.log().std() > 1
    assert net.dt_proj.weight.abs().max() <= 0.5


def test_mamba_is_causal_and_two_of_them_are_not():
    one, both = Mamba(16, state=2).double(), Mamba(16, state=2, bidirectional=True).double()
    h = torch.randn(1, 8, 16, dtype=torch.float64)
    late = h.clone()
    late[:, 5:] += 1
    torch.testing.assert_close(one(late)[:, :5], one(h)[:, :5])
    assert not torch.allclose(both(late)[:, 0], both(h)[:, 0])


def test_directions_with_the_same_weights_mirror_each_other():
    net = Mamba(16, state=2, bidirectional=True).double()
    for name, weight in net.state_dict().items():
        if "_b." in name or name in ("A_b_log", "D_b"):
            weight.copy_(net.state_dict()[name.replace("_b", "", 1)])
    h = torch.randn(2, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(net(h.flip(1)), net(h).flip(1), rtol=1e-12, atol=1e-12)


def test_mamba_with_a_condition():
    net = Mamba(16, state=2, condition=6)
    h, c = torch.randn(2, 5, 16), torch.randn(2, 6)
    assert not torch.allclose(net(h, c), net(h, 2 * c))
    torch.testing.assert_close(net(h, c)[:1], net(h[:1], c[:1]))
    with pytest.raises(UserError, match="needs a condition"):
        net(h)
    with pytest.raises(UserError, match="has no condition"):
        Mamba(16)(h, c)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_an_order_is_a_way_to_read(bidirectional):
    """Tokens laid out in the order and read as they lie, by every op that is told the order and by a copy of h."""
    net = Mamba(16, state=2, bidirectional=bidirectional).double()
    h, order = torch.randn(2, 9, 16, dtype=torch.float64), torch.randperm(9)
    laid = net(h[:, order])
    torch.testing.assert_close(net(h, order=order)[:, order], laid, rtol=1e-12, atol=1e-12)
    u = net.in_proj(h).chunk(2, -1)[0]
    inside = net._scan(u, 0.0, order, False, net.conv1d, net.x_proj, net.dt_proj, net.A_log, net.D)
    outside = net._scan(u[:, order], 0.0, None, False, net.conv1d, net.x_proj, net.dt_proj, net.A_log, net.D)
    torch.testing.assert_close(inside[:, order], outside, rtol=1e-12, atol=1e-12)

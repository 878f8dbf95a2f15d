"""The linear recurrence and the selective scan against themselves one step at a time, and Mamba."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from gen.errors import UserError
from gen.models.layers.ssm import scan
from gen.models.layers.ssm import selective_scan as selective
from gen.models.layers.ssm.mamba import Mamba
from gen.models.layers.ssm.scan import linear_scan, linear_scan_reference
from gen.models.layers.ssm.selective_scan import selective_scan, selective_scan_reference


def recurrence(length, dtype=torch.float64):
    a = torch.rand(2, length, 3, 1, dtype=dtype) * 1.2
    return a, torch.randn(2, length, 3, 4, dtype=dtype), torch.randn(2, 3, 4, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 33])
def test_scan_is_the_recurrence(length, dtype):
    a, b, start = recurrence(length, dtype)
    torch.testing.assert_close(linear_scan(a, b, start), linear_scan_reference(a, b, start), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 33])
def test_pairs_are_the_recurrence(length, dtype):
    """The form of logarithmic depth, which other devices than a CPU run."""
    a, b, _ = recurrence(length, dtype)
    torch.testing.assert_close(scan._in_pairs(a, b), linear_scan_reference(a, b), rtol=1e-12, atol=1e-12)
    back = scan._in_pairs(a.roll(-1, 1).flip(1), b.flip(1)).flip(1)
    torch.testing.assert_close(back, scan._in_order(a, b, True), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own forward mode
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_scan_has_all_derivatives(dtype):
    a, b, start = (v[:1, ..., :2].requires_grad_() for v in recurrence(3, dtype))
    assert gradcheck(linear_scan, (a, b, start), check_forward_ad=True)
    assert gradgradcheck(linear_scan, (a, b, start), check_fwd_over_rev=True)


def parts(batch=2, length=11, inner=5, state=3, dtype=torch.float64):
    u, z, delta = torch.randn(3, batch, length, inner, dtype=dtype)
    B, C = torch.randn(2, batch, length, state, dtype=dtype)
    A, D = -4 * torch.rand(inner, state, dtype=dtype), torch.randn(inner, dtype=dtype)
    return [u, delta.exp(), A, B, C, D, z]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_selective_scan_is_the_reference_with_every_gradient(batch, monkeypatch):
    monkeypatch.setattr(selective, "AT_ONCE", 2 * 11 * 5 * 3)  # two rows at a time
    inputs = [v.requires_grad_() for v in parts(batch)]
    fast, slow = selective_scan(*inputs), selective_scan_reference(*inputs)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(slow)
    for a, b in zip(
        torch.autograd.grad(fast, inputs, direction), torch.autograd.grad(slow, inputs, direction), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_selective_scan_has_all_derivatives():
    inputs = [v.requires_grad_() for v in parts(2, 3, 2, 2)[:5]]
    assert gradcheck(selective_scan, inputs, check_forward_ad=True)
    assert gradgradcheck(selective_scan, inputs)


def test_selective_scan_without_gate_and_pass_by():
    inputs = parts()
    torch.testing.assert_close(selective_scan(*inputs[:5]), selective_scan_reference(*inputs[:5]))
    assert not torch.allclose(selective_scan(*inputs[:5]), selective_scan(*inputs[:6]))


def test_selective_scan_by_hand():
    """Two tokens, one channel, one state: h1 = d1 B1 u1, h2 = exp(d2 A) h1 + d2 B2 u2."""
    u, delta, B, C = (torch.tensor([[[v], [w]]]) for v, w in ((1.0, 2.0), (0.5, 0.25), (3.0, 4.0), (1.0, 10.0)))
    h1 = 0.5 * 3 * 1
    h2 = torch.tensor(-0.25 * 2).exp() * h1 + 0.25 * 4 * 2
    y = selective_scan(u, delta, torch.tensor([[-2.0]]), B, C)
    torch.testing.assert_close(y.flatten(), torch.stack([torch.tensor(h1), 10 * h2]))


def test_long_and_steep_sequences_stay_finite():
    """Sums of delta A beyond the range of exp, in float32: nothing is ever exponentiated upwards."""
    u, delta, A, B, C, D, z = parts(1, 300, 4, 2, torch.float32)
    y = selective_scan(u, 100 * delta, A, B, C, D, z)
    assert y.isfinite().all()
    torch.testing.assert_close(y, selective_scan_reference(u, 100 * delta, A, B, C, D, z), rtol=1e-4, atol=1e-3)


def test_half_precision_is_scanned_in_float32():
    inputs = [v.bfloat16() for v in parts(length=40)]
    y = selective_scan(*inputs)
    exact = selective_scan_reference(*(v.double() for v in inputs))
    assert y.dtype == torch.bfloat16
    assert (y.double() - exact).norm() < 0.01 * exact.norm()


def test_mamba_is_the_published_computation():
    """Written out anew with PyTorch's own convolution and the sequential scan."""
    net = Mamba(32, state=4).double()
    h = torch.randn(2, 9, 32, dtype=torch.float64)
    u, z = (h @ net.in_proj.weight.T).chunk(2, -1)
    u = torch.nn.functional.silu(net.conv1d(u.mT)[..., :9].mT)
    dt, B, C = net.x_proj(u).split([2, 4, 4], -1)
    y = selective_scan_reference(u, torch.nn.functional.softplus(net.dt_proj(dt)), -net.A_log.exp(), B, C, net.D, z)
    torch.testing.assert_close(net(h), net.out_proj(y), rtol=1e-12, atol=1e-12)


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

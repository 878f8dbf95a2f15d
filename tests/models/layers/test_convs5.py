"""ConvS5 frame by frame."""

import pytest
import torch
from torch.nn.functional import conv2d

from gen.config.errors import UserError
from gen.models.layers.ssm.convs5 import ConvS5
from gen.models.layers.ssm.hippo import legs_diagonal


def one_by_one(net, u, x):
    """x_t = A_bar x_(t-1) + B_bar * u_t, y_t = 2 Re(C * x_t) + D * u_t, as the equations stand."""
    A = torch.complex(net.Lambda_re.clamp(max=-1e-4) if net.clip else net.Lambda_re, net.Lambda_im)
    step = (A * net.log_step.exp()).exp()
    B = torch.view_as_complex(net.B) * ((step - 1) / A)[:, None, None, None]
    C, outs = torch.view_as_complex(net.C), []
    for t in range(u.shape[1]):
        x = step[:, None, None] * x + conv2d(u[:, t].to(B.dtype), B, padding=net.kernel // 2)
        outs.append(2 * conv2d(x, C, padding=net.kernel // 2).real + net.D(u[:, t]))
    return torch.stack(outs, 1), x


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("begins", [False, True])
def test_all_frames_at_once_are_one_after_another(blocks, begins):
    net = ConvS5(3, state=8, blocks=blocks).double()
    u = torch.randn(2, 7, 3, 5, 4, dtype=torch.float64)
    start = torch.randn(2, 4, 5, 4, dtype=torch.complex128)
    y, last = net(u, start if begins else None)
    expected, x = one_by_one(net, u, start if begins else torch.zeros_like(start))
    assert y.shape == u.shape and last.shape == (2, 4, 5, 4)
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(last, x, rtol=1e-11, atol=1e-11)


def test_the_last_state_goes_on():
    """Two halves, the second starting from the first's last state, are the whole; gradients too."""
    net = ConvS5(2, state=4).double()
    u = torch.randn(1, 6, 2, 4, 4, dtype=torch.float64)
    whole, _ = net(u)
    first, state = net(u[:, :3])
    second, _ = net(u[:, 3:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-12, atol=1e-12)
    weights = list(net.parameters())
    halves = torch.autograd.grad(torch.cat([first, second], 1).square().sum(), weights)
    for a, b in zip(halves, torch.autograd.grad(whole.square().sum(), weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
        assert b.abs().max() > 0


def test_clipped_eigenvalues_are_stable_whatever_training_does():
    clipped, free = ConvS5(1, state=8).double(), ConvS5(1, state=8, clip=False).double()
    u = torch.zeros(1, 400, 1, 1, 1, dtype=torch.float64)
    u[:, 0] = 1
    with torch.no_grad():
        for net in (clipped, free):
            net.Lambda_re.fill_(3.0)
            net.log_step.fill_(-2.3)
        assert clipped.eigenvalues().real.max() <= -1e-4
        assert clipped(u)[1].abs().max() < 1 < 1e6 < free(u)[1].abs().max()


def test_starts_at_hippo():
    net = ConvS5(3, state=16, blocks=2)
    expected = legs_diagonal(8).to(torch.complex64)
    assert net.eigenvalues().tolist() == pytest.approx([*expected.tolist(), *expected.tolist()], rel=1e-5)
    assert net.B.shape == (8, 3, 3, 3, 2) and net.C.shape == (3, 8, 3, 3, 2)
    dt = net.log_step.exp()
    assert dt.min() >= 0.999e-3 and dt.max() <= 0.1001
    with pytest.raises(UserError, match="even blocks"):
        ConvS5(3, state=6, blocks=2)

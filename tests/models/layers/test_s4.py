"""S4 and S4D: each kernel against its recurrence."""

import pytest
import torch

from gen.config.errors import UserError
from gen.kernels.long_convolution import long_convolution
from gen.kernels.s4d import s4d_kernel
from gen.models.layers.ssm.hippo import conjugate_pairs, diagonal, legs
from gen.models.layers.ssm.s4 import S4, dplr_dense, dplr_kernel, untruncated
from gen.models.layers.ssm.s4d import S4D, s4d_scan

STARTS = ["legs", "inv", "lin", "quad", "real"]
DT = torch.tensor([1e-3, 1e-2, 0.1], dtype=torch.float64)


def close(a, b, bound):
    assert (a - b).abs().max() <= bound * b.abs().max()


def direct(u, K):
    """Sum by sum: y_t = sum over s <= t of K_s u_(t-s)."""
    y = torch.zeros_like(u)
    for t in range(u.shape[1]):
        for s in range(t + 1):
            y[:, t] += K[:, s] * u[:, t - s]
    return y


@pytest.mark.parametrize("start", STARTS)
def test_s4d_kernel_convolution_and_recurrence_are_one(start):
    A = diagonal(start, 16).expand(3, 8)
    C = torch.randn(3, 8, dtype=torch.complex128)
    u = torch.randn(2, 40, 3, dtype=torch.float64)
    K = s4d_kernel(A, C, DT, 40)
    close(long_convolution(u, K), direct(u, K), 1e-12)
    close(s4d_scan(A, C, DT, u), direct(u, K), 1e-12)
    step = (DT[:, None] * A).exp()  # the equation of the recurrence, anew: x = e^(dt A) x + (e^(dt A) - 1) / A u
    x, outs = torch.zeros(2, 3, 8, dtype=torch.complex128), []
    for t in range(40):
        x = step * x + (step - 1) / A * u[:, t, :, None]
        outs.append(2 * (C * x).sum(-1).real)
    close(torch.stack(outs, 1), direct(u, K), 1e-12)


def test_s4d_zero_order_hold_is_exact_for_a_held_input():
    """A fine simulation of x' = A x + u with u constant over each step gives the same outputs."""
    A, C = diagonal("lin", 4)[None], torch.randn(1, 2, dtype=torch.complex128)
    dt, u = torch.tensor([0.1], dtype=torch.float64), torch.randn(1, 5, 1, dtype=torch.float64)
    fine = 500
    x, outs = torch.zeros(1, 2, dtype=torch.complex128), []
    for t in range(5):
        for _ in range(fine):  # the midpoint rule
            half = x + dt / fine / 2 * (A * x + u[:, t])
            x = x + dt / fine * (A * half + u[:, t])
        outs.append(2 * (C * x).sum().real)
    close(s4d_scan(A, C, dt, u).flatten(), torch.stack(outs), 1e-6)


@pytest.mark.parametrize("length", [1, 2, 9, 64, 65])
def test_s4_kernel_is_the_dense_recurrence(length):
    lam, _, B, P = conjugate_pairs(*legs(16))
    lam, B, P = (v.expand(3, 8) for v in (lam, B, P[:, 0]))
    C = torch.randn(3, 8, dtype=torch.complex128)
    K = dplr_kernel(lam, P, B, C, DT, length)
    step, into = dplr_dense(lam, P, B, DT)
    out, x, expected = untruncated(lam, P, C, DT, length), into, []
    for _ in range(length):
        expected.append((out * x).sum(-1))
        x = (step @ x[..., None])[..., 0]
    expected = torch.stack(expected, -1)
    assert expected.imag.abs().max() < 1e-10 * expected.abs().max()
    close(K, expected.real, 1e-10)


def test_s4_discretisation_is_the_bilinear_rule_of_hippo():
    """In HiPPO's own basis, where A is real: (1 - dt/2 A)^-1 (1 + dt/2 A)."""
    A, B, P = legs(8)
    lam, V, B_, P_ = conjugate_pairs(A, B, P)
    dt, one = 0.05, torch.eye(8, dtype=torch.float64)
    step, into = dplr_dense(lam[None], P_[:, 0][None], B_[None], torch.tensor([dt], dtype=torch.float64))
    both = torch.cat([V, V.conj()], 1)
    expected = torch.linalg.solve(one - dt / 2 * A, one + dt / 2 * A)
    torch.testing.assert_close(both @ step[0] @ both.mH, expected.to(step.dtype), rtol=0, atol=1e-12)
    expected = torch.linalg.solve(one - dt / 2 * A, dt * B)
    torch.testing.assert_close(both @ into[0], expected.to(step.dtype), rtol=0, atol=1e-12)


def test_a_kernel_that_looks_ahead():
    u, K = torch.randn(2, 7, 3, dtype=torch.float64), torch.randn(3, 14, dtype=torch.float64)
    expected = torch.zeros_like(u)
    for t in range(7):
        for s in range(-6, 7):
            if 0 <= t - s < 7:
                expected[:, t] += K[:, s] * u[:, t - s]  # K[-1] is the one after
    close(long_convolution(u, K), expected, 1e-13)


@pytest.mark.parametrize("start", STARTS)
def test_s4d_layer_has_gradients_and_is_causal(start):
    net = S4D(6, state=8, start=start).double()
    h = torch.randn(2, 9, 6, dtype=torch.float64)
    late = h.clone()
    late[:, 5:] += 1
    torch.testing.assert_close(net(late)[:, :5], net(h)[:, :5])
    net(h).square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in net.parameters())


def test_both_directions_of_s4d():
    """What a mixer of both adds is, before the nonlinearity, the second kernel run over the tokens behind."""
    net = S4D(4, state=8, bidirectional=True).double()
    h = torch.randn(1, 6, 4, dtype=torch.float64)
    forward, back = net.kernels(6)
    later = torch.cat([h[:, 1:], torch.zeros_like(h[:, :1])], 1)
    y = direct(h, forward) + direct(later.flip(1), back).flip(1) + h * net.D
    expected = torch.nn.functional.glu(net.output_linear(torch.nn.functional.gelu(y)), -1)
    torch.testing.assert_close(net(h), expected, rtol=1e-11, atol=1e-11)


def test_s4_layer():
    net = S4(6, length=12, state=8).double()
    h = torch.randn(2, 12, 6, dtype=torch.float64)
    out = net(h)
    torch.testing.assert_close(net(h[:, :7]), out[:, :7])  # causal, and good for shorter sequences
    out.square().mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in net.parameters())
    with pytest.raises(UserError, match="at most 12"):
        net(torch.zeros(1, 13, 6, dtype=torch.float64))


@pytest.mark.parametrize("make", [lambda: S4(64, length=16), lambda: S4D(64)])
def test_steps_start_log_uniform(make):
    dt = make().log_dt.detach().exp()
    assert dt.min() >= 0.999e-3 and dt.max() <= 0.1001
    assert dt.log().mean() == pytest.approx(-4.605, abs=0.6) and dt.log().std() > 1


@pytest.mark.parametrize("make", [lambda: S4(4, 8, state=7), lambda: S4D(4, state=7)])
def test_odd_states_are_refused(make):
    with pytest.raises(UserError, match="must be even"):
        make()

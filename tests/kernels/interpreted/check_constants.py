"""Second derivatives through our kernels where some of what they are given is constant, or nothing at all."""

import pytest
import torch

from gen.kernels.long_convolution import long_convolution
from gen.kernels.s4d import s4d_kernel
from gen.kernels.selective_scan import selective_scan
from gen.kernels.short_convolution import short_convolution
from gen.kernels.ssd import ssd
from tests.kernels.compare import Given, real
from tests.kernels.scans import heads, modes, scan


def slopes(op, inputs, which):
    """The gradient of one input, and the gradient of that; the others are constants."""
    leaves = [v.clone().requires_grad_(i == which) for i, v in enumerate(inputs)]
    (first,) = torch.autograd.grad(op(*leaves).square().sum(), leaves[which], create_graph=True)
    (second,) = torch.autograd.grad(real(first).square().sum(), leaves[which])
    return real(first.detach()), real(second)


@pytest.mark.parametrize(
    ("op", "plain", "inputs"),
    [
        pytest.param(long_convolution, "fft", (torch.randn(2, 5, 3), torch.randn(3, 10)), id="long"),
        pytest.param(short_convolution, "torch", (torch.randn(2, 5, 3), torch.randn(3, 4), torch.randn(3)), id="short"),
        pytest.param(ssd, "quadratic", heads(length=5), id="ssd"),
        pytest.param(selective_scan, "torch", scan(length=5), id="selective_scan"),
        pytest.param(Given(s4d_kernel, {"length": 9}), "direct", modes(), id="s4d"),
    ],
)
def test_one_input_at_a_time(op, plain, inputs):
    for which in range(len(inputs)):
        ours, theirs = (slopes(op.only(backend), inputs, which) for backend in ("triton", plain))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@pytest.mark.parametrize("backend", ["triton", "triton_chunked"])
def test_no_sample_at_all(backend):
    inputs = [v.requires_grad_() for v in heads(0, 7)]
    grads = torch.autograd.grad(ssd.only(backend)(*inputs).sum(), inputs)
    assert all(g.shape == v.shape and not g.any() for g, v in zip(grads, inputs, strict=True))


def test_an_input_made_of_another_has_its_own_part():
    u, found = torch.randn(1, 4, 2, requires_grad=True), []
    for backend in ("triton", "fft"):
        y = long_convolution.only(backend)(u, u[0].mT.square())
        found.append(torch.autograd.grad(y.square().sum(), u, create_graph=True)[0])
        found.append(torch.autograd.grad(found[-1].square().sum(), u)[0])
        found[-2] = found[-2].detach()
    for ours, theirs in zip(found[:2], found[2:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))

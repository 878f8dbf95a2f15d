"""The linear recurrence: a loop and pairs against itself one step at a time, with all derivatives."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from gen.kernels.linear_scan import linear_scan
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.scans import links

BACKENDS = pytest.mark.parametrize("backend", ["sequential", "associative"])


@BACKENDS
@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 33])
def test_it_is_the_recurrence(backend, length):
    for dtype in (torch.float64, torch.float32):
        a, b, start = links(length=length, dtype=dtype)
        holds(linear_scan, backend, eager.linear_scan, (a, b, start))
        if length > 1:  # of one token a has no gradient
            holds(linear_scan, backend, eager.linear_scan, (a, b, None, True))
    a, b, _ = links(length=length, dtype=torch.complex128)
    for reverse in (False, True):
        ours, exact = (linear_scan.only(name)(a, b, reverse=reverse) for name in (backend, "reference"))
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own forward mode
@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_all_derivatives(backend, dtype):
    op = linear_scan.only(backend)
    a, b, start = (v[:1, ..., :1, :2].requires_grad_() for v in links(length=3, dtype=dtype))
    assert gradcheck(op, (a, b, start), check_forward_ad=True)
    assert gradgradcheck(op, (a, b, start), check_fwd_over_rev=True)


def test_no_start_for_a_scan_from_the_last():
    with pytest.raises(ValueError, match="from the last to the first takes no start"):
        linear_scan(*links(), reverse=True)


@BACKENDS
def test_real_links_of_complex_numbers(backend):
    a, b, start = links(length=4, dtype=torch.complex128)
    inputs = [v[:1, ..., :1, :2].requires_grad_() for v in (a.real, b, start)]
    assert gradcheck(linear_scan.only(backend), inputs)
    assert gradgradcheck(linear_scan.only(backend), inputs)
    with pytest.raises(ValueError, match=r"a is torch.complex128 and b torch.float64; of a complex a, b must be"):
        linear_scan(a, b.real)


def test_a_compiled_graph_stays_whole():
    """Whose gradient is the other direction."""
    inputs, found = [v.requires_grad_() for v in links(length=5)[:2]], []
    for op in (torch.compile(linear_scan, backend="aot_eager", fullgraph=True), linear_scan):
        h = op(*inputs)
        found.append((h, *torch.autograd.grad(h.square().sum(), inputs)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

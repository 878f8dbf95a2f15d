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
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 33])
def test_it_is_the_recurrence(backend, dtype, length):
    a, b, start = links(length=length, dtype=dtype)
    holds(linear_scan, backend, eager.linear_scan, (a, b, start))
    if length > 1:  # of one token a has no gradient
        holds(linear_scan, backend, eager.linear_scan, (a, b, None, True))


@BACKENDS
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 7, 16, 33])
def test_of_complex_numbers(backend, reverse, length):
    a, b, _ = links(length=length, dtype=torch.complex128)
    torch.testing.assert_close(
        linear_scan.only(backend)(a, b, reverse=reverse),
        linear_scan.only("reference")(a, b, reverse=reverse),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own forward mode
@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_all_derivatives(backend, dtype):
    op = linear_scan.only(backend)
    a, b, start = (v[:1, ..., :2].requires_grad_() for v in links(length=3, dtype=dtype))
    assert gradcheck(op, (a, b, start), check_forward_ad=True)
    assert gradgradcheck(op, (a, b, start), check_fwd_over_rev=True)


def test_no_start_for_a_scan_from_the_last():
    with pytest.raises(ValueError, match="from the last to the first takes no start"):
        linear_scan(*links(), reverse=True)


@BACKENDS
def test_real_links_of_complex_numbers(backend):
    a, b, start = links(length=4, dtype=torch.complex128)
    inputs = [v[:1, ..., :2].requires_grad_() for v in (a.real, b, start)]
    assert gradcheck(linear_scan.only(backend), inputs)
    assert gradgradcheck(linear_scan.only(backend), inputs)
    with pytest.raises(ValueError, match=r"a is torch.complex128 and b torch.float64; of a complex a, b must be"):
        linear_scan(a, b.real)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_compiled_graph_stays_whole(reverse):
    inputs = [v.requires_grad_() for v in links(length=5)[:2]]
    compiled = torch.compile(linear_scan, backend="aot_eager", fullgraph=True)
    found = []
    for op in (compiled, linear_scan):
        h = op(*inputs, reverse=reverse)
        found.append((h, *torch.autograd.grad(h.square().sum(), inputs)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

"""Our kernels of the selective scan, interpreted."""

import pytest
import torch

from gen.kernels.dispatch import Refused
from gen.kernels.selective_scan import selective_scan, triton_launch
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.scans import scan


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_selective_scan(dtype):
    holds(selective_scan, "triton", eager.selective_scan, scan(1, 10, 10, 3, dtype))


@pytest.mark.parametrize(("ordered", "reverse"), [(True, False), (False, True), (True, True)])
def test_any_order(ordered, reverse):
    order = torch.tensor([3, 0, 5, 1, 2, 4]) if ordered else None
    holds(selective_scan, "triton", eager.selective_scan, (*scan(2, 6, 4, 2), order, reverse))


def test_views_and_mixed_dtypes():
    """As Mamba has them: u and B, C are parts of wider tensors, and autocast makes them of two dtypes."""
    u, delta, A, B, C = scan(1, 5, 4, 2)
    wide, maps = torch.cat([u, u], -1), torch.cat([B, C], -1).bfloat16()
    inputs = (wide[..., :4], delta, A, maps[..., :2], maps[..., 2:])
    ours, exact = (selective_scan.only(backend)(*inputs) for backend in ("triton", "reference"))
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


def test_second_derivatives():
    """The gradient is differentiated as PyTorch's own, in at least float32."""
    u, delta, A, B, C = (v.requires_grad_() for v in scan(1, 4, 3, 2))
    found = []
    for backend in ("triton", "torch"):
        y = selective_scan.only(backend)(u, delta, A, B, C)
        (slope,) = torch.autograd.grad(y.square().sum(), delta, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), (u, A)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_op_is_registered_whole():
    inputs = [v.requires_grad_() for v in scan(1, 3, 4, 2)]
    torch.library.opcheck(triton_launch._scan, (*inputs, torch.tensor([1, 2, 0]), True))


def test_refusals():
    u, *rest = scan()
    with pytest.raises(Refused, match="the last dimension is not contiguous"):
        selective_scan.only("triton")(u.mT.contiguous().mT, *rest)
    with pytest.raises(Refused, match="65 numbers of state per channel; kernels keep up to 64"):
        selective_scan.only("triton")(*scan(n=65))

"""Our kernels of linear attention and the selective scan, interpreted."""

import pytest
import torch

from gen.kernels.dispatch import Refused
from gen.kernels.linear_attention import linear_attention
from gen.kernels.linear_attention import triton_launch as linear_attention_triton
from gen.kernels.selective_scan import selective_scan
from gen.kernels.selective_scan import triton_launch as selective_scan_triton
from gen.kernels.ssd import ssd
from gen.kernels.ssd import triton_launch as ssd_triton
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.scans import heads, scan, tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_linear_attention(dtype):
    holds(linear_attention, "triton", eager.linear_attention, tokens(1, 2, 37, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_selective_scan(dtype):
    holds(selective_scan, "triton", eager.selective_scan, scan(1, 10, 10, 3, dtype))


@pytest.mark.parametrize(("ordered", "reverse"), [(True, False), (False, True), (True, True)])
def test_selective_scan_in_any_order(ordered, reverse):
    order = torch.tensor([3, 0, 5, 1, 2, 4]) if ordered else None
    holds(selective_scan, "triton", eager.selective_scan, (*scan(2, 6, 4, 2), order, reverse))


def test_selective_scan_of_views_and_mixed_dtypes():
    """As Mamba has them: u and B, C are parts of wider tensors, and autocast makes them of two dtypes."""
    u, delta, A, B, C = scan(1, 5, 4, 2)
    wide, maps = torch.cat([u, u], -1), torch.cat([B, C], -1).bfloat16()
    inputs = (wide[..., :4], delta, A, maps[..., :2], maps[..., 2:])
    ours, exact = (selective_scan.only(backend)(*inputs) for backend in ("triton", "reference"))
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


def test_second_derivatives_of_a_selective_scan():
    """The gradient is differentiated as PyTorch's own, in at least float32."""
    u, delta, A, B, C = (v.requires_grad_() for v in scan(1, 4, 3, 2))
    found = []
    for backend in ("triton", "torch"):
        y = selective_scan.only(backend)(u, delta, A, B, C)
        (slope,) = torch.autograd.grad(y.square().sum(), delta, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), (u, A)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 16, 37])
def test_ssd_as_masked_attention(dtype, length, monkeypatch):
    monkeypatch.setattr(ssd_triton, "LONGEST", 64)
    holds(ssd, "triton", eager.ssd, heads(1, length, 2, 5, 1, 3, dtype), heads(1, length, 2, 5, 1, 3, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ssd_in_chunks(dtype):
    holds(ssd, "triton_chunked", eager.ssd, heads(2, 37, 4, 5, 2, 3, dtype))


def test_ssd_forgets_without_overflow():
    x, delta, _, B, C = heads(1, 16, 4, 5, 2, 3)
    inputs = [v.requires_grad_() for v in (x, delta + 1, torch.full((4,), -300.0), B, C)]
    ours, exact = (ssd.only(backend)(*inputs) for backend in ("triton", "reference"))
    torch.testing.assert_close(ours, exact)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (ours, exact)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_second_derivatives_of_ssd():
    inputs = [v.requires_grad_() for v in heads(1, 5, 2, 2, 1, 2)]
    found = []
    for backend in ("triton", "quadratic"):
        slopes = torch.autograd.grad(ssd.only(backend)(*inputs).square().sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(v.square().sum() for v in slopes), inputs))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_ops_are_registered_whole():
    q, k, v = (x.detach().requires_grad_() for x in tokens(1, 1, 5))
    torch.library.opcheck(linear_attention_triton._attention, (q, k, v))
    inputs = [v.requires_grad_() for v in scan(1, 3, 4, 2)]
    torch.library.opcheck(selective_scan_triton._scan, (*inputs, torch.tensor([1, 2, 0]), True))
    torch.library.opcheck(ssd_triton._masked_attention, (*(v.requires_grad_() for v in heads(1, 3, 2, 2, 1, 2)), False))


def test_refusals():
    u, delta, A, B, C = scan()
    with pytest.raises(Refused, match="the last dimension is not contiguous"):
        selective_scan.only("triton")(u.mT.contiguous().mT, delta, A, B, C)
    with pytest.raises(Refused, match="65 numbers of state per channel; kernels keep up to 64"):
        selective_scan.only("triton")(*scan(n=65))
    with pytest.raises(Refused, match="head dims 129 and 9; kernels take up to 128"):
        linear_attention.only("triton")(*tokens(d=129))

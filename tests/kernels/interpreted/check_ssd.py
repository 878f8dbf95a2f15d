"""Our kernels of Mamba-2's scan, interpreted."""

import pytest
import torch

from gen.kernels.ssd import ssd, triton_launch
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.scans import heads


@pytest.mark.parametrize(
    ("dtype", "length"), [(torch.float32, 1), (torch.float32, 37), (torch.float16, 16), (torch.bfloat16, 21)]
)
def test_masked_attention(dtype, length, monkeypatch):
    monkeypatch.setattr(triton_launch, "LONGEST", 64)
    draws = 2 if length == 1 else 1  # of one token a gradient is a few numbers
    holds(ssd, "triton", eager.ssd, *(heads(1, length, 2, 5, 1, 3, dtype) for _ in range(draws)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks(dtype):
    holds(ssd, "triton_chunked", eager.ssd, heads(2, 21, 2, 5, 2, 3, dtype))


def test_it_forgets_without_overflow():
    x, delta, _, B, C = heads(1, 16, 4, 5, 2, 3)
    inputs = [v.requires_grad_() for v in (x, delta + 1, torch.full((4,), -300.0), B, C)]
    ours, exact = (ssd.only(backend)(*inputs) for backend in ("triton", "reference"))
    torch.testing.assert_close(ours, exact)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), inputs) for y in (ours, exact)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_second_derivatives():
    inputs = [v.requires_grad_() for v in heads(1, 5, 2, 2, 1, 2)]
    found = []
    for backend in ("triton", "quadratic"):
        slopes = torch.autograd.grad(ssd.only(backend)(*inputs).square().sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(v.square().sum() for v in slopes), inputs))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_op_is_registered_whole():
    inputs = [v.requires_grad_() for v in heads(1, 3, 2, 2, 1, 2)]
    torch.library.opcheck(triton_launch._masked_attention, (*inputs, False))

"""Our kernels of short convolution, interpreted."""

import pytest
import torch

from gen.kernels.dispatch import Refused
from gen.kernels.short_convolution import short_convolution, triton_launch
from tests.kernels import eager
from tests.kernels.compare import holds


def taps(dtype=torch.float32, count=4, length=11):
    return torch.randn(2, length, 10).to(dtype), torch.randn(10, count).to(dtype), torch.randn(10).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "ordered", "reverse"),
    [
        (torch.float32, False, False),
        (torch.float32, True, True),
        (torch.float16, True, False),
        (torch.bfloat16, False, True),
    ],
)
def test_short_convolution(dtype, ordered, reverse):
    order = torch.randperm(11) if ordered else None
    holds(short_convolution, "triton", eager.short_convolution, (*taps(dtype), order, reverse))


@pytest.mark.parametrize(("count", "length"), [(1, 5), (4, 2)])
def test_one_tap_and_more_taps_than_tokens(count, length):
    holds(short_convolution, "triton", eager.short_convolution, taps(count=count, length=length))


def test_a_view_with_other_weights():
    """As Mamba under autocast has it: u is half of a wider tensor in bfloat16, the weights are float32."""
    u, weight, bias = taps()
    wide = torch.cat([u, u], 2).bfloat16()[..., :10]
    ours, exact = (short_convolution.only(backend)(wide, weight, bias) for backend in ("triton", "reference"))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


def test_second_derivatives():
    inputs = [v.requires_grad_() for v in taps(length=5)]
    found = []
    for backend in ("triton", "torch"):
        y = short_convolution.only(backend)(*inputs, torch.tensor([3, 1, 0, 4, 2]))
        slopes = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(v.square().sum() for v in slopes), inputs))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)


def test_the_op_is_registered_whole():
    inputs = [v.requires_grad_() for v in taps(length=3)]
    torch.library.opcheck(triton_launch._convolve, (*inputs, torch.tensor([1, 0, 2]), True))


def test_refusals():
    with pytest.raises(Refused, match="9 taps; kernels take up to 8"):
        short_convolution.only("triton")(*taps(count=9))

"""Our kernels of long and short convolutions, interpreted."""

import pytest
import torch

from gen.kernels.dispatch import Refused
from gen.kernels.long_convolution import long_convolution
from gen.kernels.long_convolution import triton_launch as convolution_triton
from gen.kernels.short_convolution import short_convolution
from gen.kernels.short_convolution import triton_launch as short_convolution_triton
from tests.kernels import eager
from tests.kernels.compare import holds

BOTH = pytest.mark.parametrize("ways", [1, 2])


def draw(ways, dtype=torch.float32, length=37, batch=3, channels=2):
    return torch.randn(batch, length, channels).to(dtype), torch.randn(channels, ways * length).to(dtype)


@BOTH
@pytest.mark.parametrize("length", [1, 16, 37])
def test_float32(ways, length):
    holds(long_convolution, "triton", eager.long_convolution, draw(ways, length=length))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(ways, dtype):
    holds(long_convolution, "triton", eager.long_convolution, draw(ways, dtype))


def test_many_samples():
    holds(long_convolution, "triton", eager.long_convolution, draw(2, batch=20))


@BOTH
def test_second_derivatives(ways):
    u, K = (v.requires_grad_() for v in draw(ways, length=9))
    found = []
    for backend in ("triton", "toeplitz"):
        y = long_convolution.only(backend)(u, K).square().sum()
        slopes = torch.autograd.grad(y, (u, K), create_graph=True)
        found.append(torch.autograd.grad(sum(v.square().sum() for v in slopes), (u, K)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)


def taps(dtype=torch.float32, count=4, length=11):
    return torch.randn(2, length, 10).to(dtype), torch.randn(10, count).to(dtype), torch.randn(10).to(dtype)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_short_convolution(ordered, reverse):
    order = torch.randperm(11) if ordered else None
    holds(short_convolution, "triton", eager.short_convolution, (*taps(), order, reverse))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_convolution_in_half_precision(dtype):
    holds(short_convolution, "triton", eager.short_convolution, taps(dtype))


@pytest.mark.parametrize(("count", "length"), [(1, 5), (4, 2)])
def test_one_tap_and_more_taps_than_tokens(count, length):
    holds(short_convolution, "triton", eager.short_convolution, taps(count=count, length=length))


def test_short_convolution_of_a_view_with_other_weights():
    """As Mamba under autocast has it: u is half of a wider tensor in bfloat16, the weights are float32."""
    u, weight, bias = taps()
    wide = torch.cat([u, u], 2).bfloat16()[..., :10]
    ours, exact = (short_convolution.only(backend)(wide, weight, bias) for backend in ("triton", "reference"))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


def test_second_derivatives_of_a_short_convolution():
    inputs = [v.requires_grad_() for v in taps(length=5)]
    found = []
    for backend in ("triton", "torch"):
        y = short_convolution.only(backend)(*inputs, torch.tensor([3, 1, 0, 4, 2]))
        slopes = torch.autograd.grad(y.pow(3).sum(), inputs, create_graph=True)
        found.append(torch.autograd.grad(sum(v.square().sum() for v in slopes), inputs))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)


def test_the_ops_are_registered_whole():
    u, K = draw(2, length=5)
    torch.library.opcheck(
        convolution_triton._convolve, (u.permute(2, 0, 1).contiguous().requires_grad_(), K.requires_grad_())
    )
    inputs = [v.requires_grad_() for v in taps(length=3)]
    torch.library.opcheck(short_convolution_triton._convolve, (*inputs, torch.tensor([1, 0, 2]), True))


def test_refusals():
    op = long_convolution.only("triton")
    with pytest.raises(Refused, match=r"257 tokens of torch.float32; kernels take up to 256"):
        op(*draw(1, length=257))
    with pytest.raises(Refused, match=r"mixed dtypes torch.bfloat16, torch.float32"):
        op(draw(1, torch.bfloat16)[0], draw(1)[1])
    with pytest.raises(Refused, match="9 taps; kernels take up to 8"):
        short_convolution.only("triton")(*taps(count=9))

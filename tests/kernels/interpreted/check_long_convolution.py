"""Our kernels of long convolution, interpreted."""

import pytest
import torch

from gen.kernels.dispatch import Refused
from gen.kernels.long_convolution import long_convolution, triton_launch
from tests.kernels import eager
from tests.kernels.compare import holds


def draw(ways, dtype=torch.float32, length=37, batch=3, channels=2):
    return torch.randn(batch, length, channels).to(dtype), torch.randn(channels, ways * length).to(dtype)


@pytest.mark.parametrize(("ways", "length"), [(1, 1), (1, 37), (2, 1), (2, 16), (2, 37)])
def test_float32(ways, length):
    holds(long_convolution, "triton", eager.long_convolution, draw(ways, length=length))


@pytest.mark.parametrize(("dtype", "ways"), [(torch.float16, 1), (torch.bfloat16, 2)])
def test_half_precision(dtype, ways):
    holds(long_convolution, "triton", eager.long_convolution, draw(ways, dtype))


def test_many_samples():
    holds(long_convolution, "triton", eager.long_convolution, draw(2, length=16, batch=20))


@pytest.mark.parametrize("ways", [1, 2])
def test_second_derivatives(ways):
    u, K = (v.requires_grad_() for v in draw(ways, length=9))
    found = []
    for backend in ("triton", "toeplitz"):
        y = long_convolution.only(backend)(u, K).square().sum()
        slopes = torch.autograd.grad(y, (u, K), create_graph=True)
        found.append(torch.autograd.grad(sum(v.square().sum() for v in slopes), (u, K)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-2)


def test_the_op_is_registered_whole():
    u, K = draw(2, length=5)
    inputs = (u.permute(2, 0, 1).contiguous().requires_grad_(), K.requires_grad_())
    torch.library.opcheck(triton_launch._convolve, inputs)


def test_refusals():
    op = long_convolution.only("triton")
    with pytest.raises(Refused, match=r"257 tokens of torch.float32; kernels take up to 256"):
        op(*draw(1, length=257))
    with pytest.raises(Refused, match=r"mixed dtypes torch.bfloat16, torch.float32"):
        op(draw(1, torch.bfloat16)[0], draw(1)[1])

"""Long convolution: the law of kernels, and who convolves what."""

import pytest
import torch

from gen.kernels.dispatch import Refused
from gen.kernels.long_convolution import long_convolution, pytorch
from tests.kernels import eager
from tests.kernels.compare import holds

BOTH = pytest.mark.parametrize("ways", [1, 2])


def draw(ways, dtype=torch.float32, length=24):
    return torch.randn(3, length, 5).to(dtype), torch.randn(5, ways * length).to(dtype)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fourier_and_toeplitz(ways, dtype, monkeypatch):
    monkeypatch.setattr(pytorch, "AT_ONCE", 2 * 24 * 24)  # two channels at once
    holds(long_convolution, "toeplitz", eager.long_convolution, draw(ways, dtype))
    if dtype != torch.bfloat16:
        holds(long_convolution, "fft", eager.long_convolution, draw(ways, dtype))


@pytest.mark.parametrize("backend", ["fft", "toeplitz", "reference"])
def test_by_hand(backend):
    u, K = torch.tensor([[[1.0], [10.0], [100.0]]]), torch.tensor([[1.0, 2.0, 3.0, 99.0, 5.0, 7.0]])
    found = long_convolution.only(backend)(u, K)
    torch.testing.assert_close(found.flatten(), torch.tensor([1 + 70 + 500.0, 10 + 2 + 700.0, 100 + 20 + 3.0]))


@pytest.mark.parametrize("backend", ["fft", "toeplitz", "reference"])
def test_all_derivatives(backend):
    inputs = [v.requires_grad_() for v in (torch.randn(1, 3, 2).double(), torch.randn(2, 6).double())]
    assert torch.autograd.gradcheck(long_convolution.only(backend), inputs)
    assert torch.autograd.gradgradcheck(long_convolution.only(backend), inputs)


@BOTH
def test_no_sample_at_all(ways):
    u, K = (v.requires_grad_() for v in draw(ways))
    y = long_convolution(u[:0], K)
    assert y.shape == (0, 24, 5)
    assert not torch.autograd.grad(y.sum(), K)[0].any()


def test_refusals():
    with pytest.raises(Refused, match=r"fft refuses: no Fourier transform of torch.bfloat16"):
        long_convolution.only("fft")(*draw(1, torch.bfloat16))
    with pytest.raises(Refused, match="toeplitz refuses: 600 tokens; matrices are built for up to 512"):
        long_convolution.only("toeplitz")(*draw(1, length=600))
    with pytest.raises(Refused, match=r"mixed dtypes torch.bfloat16, torch.float32"):
        long_convolution.only("toeplitz")(draw(1)[0], draw(1, torch.bfloat16)[1])
    with pytest.raises(ValueError, match=r"K is \[5, 24\]; it must be \[5, 23\] or \[5, 46\]"):
        long_convolution(draw(1)[0][:, 1:], draw(1)[1])


def test_a_compiled_graph_stays_whole():
    u, K = draw(2)
    assert torch.equal(
        torch.compile(long_convolution, backend="aot_eager", fullgraph=True)(u, K), long_convolution(u, K)
    )


@pytest.mark.gpu
@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(ways, dtype):
    u, K = torch.randn(5, 200, 48).to(dtype).cuda(), torch.randn(48, ways * 200).to(dtype).cuda()
    holds(long_convolution, "triton", eager.long_convolution, (u, K))

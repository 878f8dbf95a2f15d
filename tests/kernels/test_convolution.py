"""Long and short convolutions: the law of kernels, and who convolves what."""

import pytest
import torch

from gen.kernels.dispatch import Refused
from gen.kernels.long_convolution import long_convolution
from gen.kernels.short_convolution import short_convolution
from tests.kernels import eager
from tests.kernels.compare import holds

BOTH = pytest.mark.parametrize("ways", [1, 2])


def draw(ways, dtype=torch.float32, length=24):
    return torch.randn(3, length, 5).to(dtype), torch.randn(5, ways * length).to(dtype)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fourier(ways, dtype):
    holds(long_convolution, "fft", eager.long_convolution, draw(ways, dtype))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_toeplitz(ways, dtype, monkeypatch):
    monkeypatch.setattr("gen.kernels.long_convolution.pytorch.AT_ONCE", 2 * 24 * 24)  # two channels at once
    holds(long_convolution, "toeplitz", eager.long_convolution, draw(ways, dtype))


@pytest.mark.parametrize("backend", ["fft", "toeplitz", "reference"])
def test_by_hand(backend):
    u, K = torch.tensor([[[1.0], [10.0], [100.0]]]), torch.tensor([[1.0, 2.0, 3.0, 99.0, 5.0, 7.0]])
    found = long_convolution.only(backend)(u, K)
    torch.testing.assert_close(found.flatten(), torch.tensor([1 + 70 + 500.0, 10 + 2 + 700.0, 100 + 20 + 3.0]))


@pytest.mark.parametrize("backend", ["fft", "toeplitz", "reference"])
def test_all_derivatives(backend):
    inputs = [v.requires_grad_() for v in (torch.randn(1, 4, 2).double(), torch.randn(2, 8).double())]
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


def taps(dtype=torch.float32, taps=4, length=11):
    return torch.randn(2, length, 3).to(dtype), torch.randn(3, taps).to(dtype), torch.randn(3).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_short_convolution(ordered, reverse, dtype):
    order = torch.randperm(11) if ordered else None
    draws = [(*taps(dtype), order, reverse) for _ in range(2)]
    holds(short_convolution, "torch", eager.short_convolution, *draws)


@pytest.mark.parametrize(("count", "length"), [(1, 5), (4, 2), (4, 1)])
def test_one_tap_and_more_taps_than_tokens(count, length):
    holds(short_convolution, "torch", eager.short_convolution, taps(taps=count, length=length))


def test_short_convolution_by_hand():
    u, weight, bias = torch.tensor([[[1.0], [10.0], [100.0]]]), torch.tensor([[2.0, 3.0]]), torch.tensor([0.5])
    for order, reverse, expected in (
        (None, False, [3.5, 32.5, 320.5]),
        (None, True, [23.5, 230.5, 300.5]),
        ([2, 0, 1], False, [203.5, 32.5, 300.5]),
    ):
        order = None if order is None else torch.tensor(order)
        assert short_convolution(u, weight, bias, order, reverse).flatten().tolist() == expected


def test_wrong_shapes_of_a_short_convolution():
    u, weight, bias = taps()
    with pytest.raises(ValueError, match=r"u, weight, bias are \[2, 11, 3\], \[3, 4\], \[2\]; they must be"):
        short_convolution(u, weight, bias[1:])
    with pytest.raises(ValueError, match=r"order is torch.int64 \[10\]; it must be torch.int64 \[11\]"):
        short_convolution(u, weight, bias, torch.arange(10))


@pytest.mark.gpu
@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(ways, dtype):
    u, K = torch.randn(5, 200, 48).to(dtype).cuda(), torch.randn(48, ways * 200).to(dtype).cuda()
    holds(long_convolution, "triton", eager.long_convolution, (u, K))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_short_convolution_on_a_gpu(dtype):
    order = torch.randperm(100).cuda()
    inputs = torch.randn(3, 100, 200), torch.randn(200, 4), torch.randn(200)
    holds(short_convolution, "triton", eager.short_convolution, (*(v.to(dtype).cuda() for v in inputs), order, True))

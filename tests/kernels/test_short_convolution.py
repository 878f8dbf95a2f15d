"""Short convolution: the law of kernels, orders of tokens, and wrong shapes."""

import pytest
import torch

from gen.kernels.short_convolution import short_convolution
from tests.kernels import eager
from tests.kernels.compare import holds


def taps(dtype=torch.float32, taps=4, length=11):
    return torch.randn(2, length, 3).to(dtype), torch.randn(3, taps).to(dtype), torch.randn(3).to(dtype)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_short_convolution(ordered, reverse):
    order = torch.randperm(11) if ordered else None
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        draws = [(*taps(dtype), order, reverse) for _ in range(2)]
        holds(short_convolution, "torch", eager.short_convolution, *draws)


@pytest.mark.parametrize(("count", "length"), [(1, 5), (4, 2), (4, 1)])
def test_one_tap_and_more_taps_than_tokens(count, length):
    holds(short_convolution, "torch", eager.short_convolution, taps(taps=count, length=length))


def test_by_hand():
    u, weight, bias = torch.tensor([[[1.0], [10.0], [100.0]]]), torch.tensor([[2.0, 3.0]]), torch.tensor([0.5])
    for order, reverse, expected in (
        (None, False, [3.5, 32.5, 320.5]),
        (None, True, [23.5, 230.5, 300.5]),
        ([2, 0, 1], False, [203.5, 32.5, 300.5]),
    ):
        order = None if order is None else torch.tensor(order)
        assert short_convolution(u, weight, bias, order, reverse).flatten().tolist() == expected


def test_wrong_shapes():
    u, weight, bias = taps()
    with pytest.raises(ValueError, match=r"u, weight, bias are \[2, 11, 3\], \[3, 4\], \[2\]; they must be"):
        short_convolution(u, weight, bias[1:])
    with pytest.raises(ValueError, match=r"order is torch.int64 \[10\]; it must be torch.int64 \[11\]"):
        short_convolution(u, weight, bias, torch.arange(10))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype):
    order = torch.randperm(100).cuda()
    inputs = torch.randn(3, 100, 200), torch.randn(200, 4), torch.randn(200)
    holds(short_convolution, "triton", eager.short_convolution, (*(v.to(dtype).cuda() for v in inputs), order, True))

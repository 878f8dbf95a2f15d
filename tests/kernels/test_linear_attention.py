"""Linear attention in PyTorch: the law of kernels, LightNet's own mixer, derivatives and wrong shapes."""

import pytest
import torch

from gen.kernels.dispatch import Refused
from gen.kernels.linear_attention import linear_attention
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.scans import tokens


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_two_products(dtype):
    holds(linear_attention, "torch", eager.linear_attention, tokens(dtype=dtype))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_all_derivatives(backend):
    inputs = [v.double().requires_grad_() for v in tokens(1, 1, 4, 2, 3)]
    assert torch.autograd.gradcheck(linear_attention.only(backend), inputs)
    assert torch.autograd.gradgradcheck(linear_attention.only(backend), inputs)


def test_wrong_shapes_and_refusals():
    q, k, v = tokens()
    with pytest.raises(ValueError, match=r"q, k, v are \[2, 2, 37, 12\], \[2, 2, 36, 12\], \[2, 2, 37, 9\]; they must"):
        linear_attention(q, k[:, :, 1:], v)
    with pytest.raises(Refused, match="triton refuses: tensors lie on cpu"):
        linear_attention.only("triton")(q, k, v)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype):
    inputs = [v.cuda() for v in tokens(2, 3, 301, 72, 64, dtype)]
    holds(linear_attention, "triton", eager.linear_attention, inputs)

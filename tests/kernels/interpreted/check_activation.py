"""Our kernels of activations, interpreted."""

import pytest
import torch

from gen.kernels.activation import gelu_tanh, rational, swiglu
from gen.kernels.activation import triton_launch as activation_triton
from gen.kernels.dispatch import Refused
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.test_activation import coefficients

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


@DTYPES
def test_swiglu(dtype):
    holds(swiglu, "triton", eager.swiglu, (torch.randn(3, 3, 34).to(dtype),))


@DTYPES
@pytest.mark.parametrize("biased", [True, False])
def test_gelu(dtype, biased):
    bias = torch.randn(21).to(dtype) if biased else None
    holds(gelu_tanh, "triton", eager.gelu_tanh, ((2 * torch.randn(2, 5, 21)).to(dtype), bias))


@pytest.mark.parametrize(
    ("dtype", "shared"), [(torch.float32, True), (torch.float32, False), (torch.float16, True), (torch.bfloat16, False)]
)
def test_rational(dtype, shared):
    # About |x| = 1 all powers weigh alike: else a gradient is, in effect, a single number.
    draws = [(torch.randn(2, 5, 34).to(dtype), *coefficients(2, shared, dtype)) for _ in range(3)]
    holds(rational, "triton", eager.rational, *draws)


def test_the_ops_are_registered_whole():
    x, bias = torch.randn(2, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    torch.library.opcheck(activation_triton._swiglu, (x,))
    torch.library.opcheck(activation_triton._gelu, (x, bias))
    torch.library.opcheck(activation_triton._rational, (x, *(v.requires_grad_() for v in coefficients(2))))


def test_refusals():
    with pytest.raises(Refused, match="degrees 2 and 1; kernels have 5 and 4"):
        rational.only("triton")(torch.zeros(2, 4), torch.zeros(1, 3), torch.zeros(2, 1))
    with pytest.raises(Refused, match="not all tensors are contiguous"):
        swiglu.only("triton")(torch.zeros(4, 2).mT)
    with pytest.raises(Refused, match=r"mixed dtypes torch.bfloat16, torch.float32"):
        gelu_tanh.only("triton")(torch.zeros(2, 4), torch.zeros(4).bfloat16())

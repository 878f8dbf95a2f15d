"""Activations in PyTorch: the law of kernels, closed forms, derivatives and wrong arguments."""

import pytest
import torch

from gen.kernels.activation import gelu_tanh, rational, swiglu
from gen.kernels.dispatch import Refused
from tests.kernels import eager
from tests.kernels.compare import holds

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])


def coefficients(groups=4, shared=True, dtype=torch.float32):
    return torch.randn(1 if shared else groups, 6).to(dtype) / 4, torch.randn(groups, 4).to(dtype)


@DTYPES
def test_swiglu(dtype):
    holds(swiglu, "torch", eager.swiglu, (torch.randn(3, 5, 12).to(dtype),))


@DTYPES
@pytest.mark.parametrize("biased", [True, False])
def test_gelu(dtype, biased):
    bias = torch.randn(12).to(dtype) if biased else None
    holds(gelu_tanh, "torch", eager.gelu_tanh, ((2 * torch.randn(3, 5, 12)).to(dtype), bias))


@DTYPES
@pytest.mark.parametrize("shared", [True, False])
def test_rational(dtype, shared):
    holds(rational, "torch", eager.rational, ((2 * torch.randn(3, 5, 24)).to(dtype), *coefficients(4, shared, dtype)))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_rational_function_by_hand(backend):
    x = torch.tensor([[2.0, -2.0, 3.0, 0.0]])
    numerator, denominator = torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[-1.0], [0.5]])
    found = rational.only(backend)(x, numerator, denominator)
    torch.testing.assert_close(found, torch.tensor([[13 / 3, 13 / 3, 28 / 2.5, 1.0]]))


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_all_derivatives(backend):
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    inputs = [v.double().requires_grad_() for v in coefficients(2)]
    for op, args in (
        (swiglu, (x,)),
        (gelu_tanh, (x, torch.randn(8, dtype=torch.float64, requires_grad=True))),
        (rational, (x, *inputs)),
    ):
        assert torch.autograd.gradcheck(op.only(backend), args)
        assert torch.autograd.gradgradcheck(op.only(backend), args)


def test_compiled_graphs_stay_whole():
    x = torch.randn(2, 8)
    for op, args in ((swiglu, (x,)), (gelu_tanh, (x, x[0])), (rational, (x, *coefficients(2)))):
        assert torch.equal(torch.compile(op, backend="aot_eager", fullgraph=True)(*args), op(*args))


def test_wrong_arguments():
    x = torch.zeros(2, 9)
    with pytest.raises(ValueError, match=r"swiglu: the last size of \[2, 9\] must be even"):
        swiglu(x)
    with pytest.raises(ValueError, match=r"gelu_tanh: bias is \[8\]; it must be \[9\]"):
        gelu_tanh(x, x[0, 1:])
    with pytest.raises(ValueError, match="9 channels do not divide into 4 groups"):
        rational(x, *coefficients(4))
    with pytest.raises(ValueError, match=r"coefficients are \[2, 6\] and \[3, 4\]; they must be \[1 or G, m \+ 1\]"):
        rational(x, torch.zeros(2, 6), torch.zeros(3, 4))
    for op, args in ((swiglu, (x[:, 1:],)), (gelu_tanh, (x,)), (rational, (x, *coefficients(3)))):
        with pytest.raises(Refused, match=f"{op.name}: triton refuses: "):
            op.only("triton")(*args)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype):
    x = (2 * torch.randn(3, 77, 1184)).to(dtype).cuda()
    holds(swiglu, "triton", eager.swiglu, (x,))
    for bias in (None, x[0, 0].clone()):
        holds(gelu_tanh, "triton", eager.gelu_tanh, (x, bias))
    for shared in (True, False):
        draws = [(torch.randn(3, 77, 1184), *coefficients(8, shared)) for _ in range(6)]
        holds(rational, "triton", eager.rational, *([v.to("cuda", dtype) for v in draw] for draw in draws))

"""Linear layers with weights in oneDNN's layout: the law of kernels, gradients, refusals."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.functional import gelu, silu
from torch.nn.functional import linear as product

from gen.kernels.dispatch import Refused
from gen.kernels.linear import linear, pack, unpackable
from tests.kernels.compare import error_ratio

ACTIVATIONS = [None, "gelu_tanh", "gelu", "silu"]
PACKED = [d for d in (torch.float32, torch.bfloat16) if unpackable(torch.empty(1, 1, dtype=d)) is None]


def eager(x, weight, bias, activation):
    out = product(x, weight, bias)
    if activation is None:
        return out
    return silu(out) if activation == "silu" else gelu(out, approximate="tanh" if activation == "gelu_tanh" else "none")


def inputs(dtype, rows=(3, 37), size=48, out=80, biased=True):
    torch.manual_seed(0)
    x, weight = torch.randn(*rows, size).to(dtype), (torch.randn(out, size) / size**0.5).to(dtype)
    return x, weight, torch.randn(out).to(dtype) if biased else None


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", PACKED)
def test_packed_weights_are_as_exact_as_eager_ones(dtype, biased, activation):
    x, weight, bias = inputs(dtype, biased=biased)
    packed = pack(weight)
    assert torch.equal(packed.dense(), weight)
    ours = linear.only("onednn")(x, packed, bias, activation)
    exact = linear.only("reference")(*(v if v is None else v.double() for v in (x, weight, bias)), activation)
    assert ours.shape == (3, 37, 80) and ours.dtype == dtype
    assert error_ratio(ours, eager(x, weight, bias, activation), exact) <= 2
    assert torch.equal(ours, linear(x, packed, bias, activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_reference_is_the_formula(activation):
    x, weight, bias = inputs(torch.float64)
    found = linear.only("reference")(x, weight, bias, activation)
    torch.testing.assert_close(found, eager(x, weight, bias, activation), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(linear(x, weight, bias, activation), found, rtol=1e-13, atol=1e-13)


@pytest.mark.skipif(not PACKED, reason="no oneDNN")
@pytest.mark.parametrize("rows", [(1,), (256,), (2, 0), (1, 1, 5)])
def test_any_number_of_rows(rows):
    x, weight, bias = inputs(torch.float32, rows)
    torch.testing.assert_close(linear(x, pack(weight), bias), product(x, weight, bias))


@pytest.mark.skipif(not PACKED, reason="no oneDNN")
def test_strided_inputs_are_read_where_they_lie():
    x, weight, bias = inputs(torch.float32, (48, 5), 6, 7)
    strided = x.permute(1, 0, 2)[:, ::2]
    torch.testing.assert_close(linear(strided, pack(weight), bias), product(strided.contiguous(), weight, bias))


@pytest.mark.skipif(not PACKED, reason="no oneDNN")
def test_a_gradient_goes_through_packed_weights_to_what_is_no_constant():
    x, weight, bias = inputs(torch.float32)
    packed = pack(weight)
    assert linear.explain(x.requires_grad_(), packed, bias)["onednn"] == "refuses: a gradient is needed"
    ours = torch.autograd.grad(linear(x, packed, bias, "silu").square().sum(), x)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(eager(x, weight, bias, "silu").square().sum(), x)[0])
    with torch.no_grad():
        assert linear.explain(x, packed, bias)["onednn"] == "chosen"


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own forward mode
@pytest.mark.skipif(not PACKED, reason="no oneDNN")
def test_every_kind_of_derivative_goes_through_packed_weights():
    x, weight, bias = inputs(torch.float32)
    packed, along = pack(weight), torch.randn_like(x)
    tangent = torch.func.jvp(lambda x: linear(x, packed, bias), (x,), (along,))[1]
    torch.testing.assert_close(tangent, product(along, weight))
    with torch.no_grad(), forward_ad.dual_level():
        out = linear(forward_ad.make_dual(x, along), packed, bias)
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent, product(along, weight))
    slope = torch.func.grad(lambda x: linear(x, packed, bias).sum())(x)
    torch.testing.assert_close(slope, weight.sum(0).expand_as(x))


def test_refusals_say_why():
    x, weight, bias = inputs(torch.float32)
    with pytest.raises(Refused, match=r"pack: weights are torch\.float64; oneDNN's are float32 or bfloat16"):
        pack(weight.double())
    with pytest.raises(Refused, match=r"pack: weights are \[48\]; they must be \[out, in\]"):
        pack(weight[0])
    with pytest.raises(Refused, match=r"onednn refuses: weights are not packed"):
        linear.only("onednn")(x, weight, bias)
    with pytest.raises(ValueError, match=r"x is \[3, 37, 48\]; for weights \[80, 8\] its last size must be 8"):
        linear(x, weight[:, :8], bias)
    with pytest.raises(ValueError, match=r"bias is \[3\]; it must be \[80\]"):
        linear(x, weight, bias[:3])
    with pytest.raises(ValueError, match="activation is 'relu'; it must be None, 'gelu_tanh', 'gelu' or 'silu'"):
        linear(x, weight, bias, "relu")
    if PACKED:
        with pytest.raises(Refused, match=r"onednn refuses: x or bias is not in the weights' torch\.float32"):
            linear.only("onednn")(x.double(), pack(weight), bias)

"""Our kernels of norm and turn, interpreted: forward, backward, and the gradients of gradients."""

from functools import partial

import pytest
import torch

from gen.kernels.dispatch import Refused
from gen.kernels.rope import norm_rope
from gen.kernels.rope.triton_launch import _norm_rope
from tests.kernels import eager
from tests.kernels.compare import Given, holds

PAIRS = pytest.mark.parametrize("pairs", ["adjacent", "split"])


def tables(n, dim, b=None):
    angle = torch.rand(*(() if b is None else (b,)), n, dim) * 7
    return {"cos": angle.cos(), "sin": angle.sin()}


def agrees(x, gain, fixed):
    holds(Given(norm_rope, fixed), "triton", partial(eager.norm_rope, **fixed), (x, gain, 1e-5))


@pytest.mark.parametrize(
    ("pairs", "dtype", "dim", "b"),
    [
        ("adjacent", torch.float32, 16, None),
        ("split", torch.float32, 72, 2),
        ("adjacent", torch.bfloat16, 72, 2),
        ("split", torch.bfloat16, 16, None),
    ],
)
def test_all_of_it(pairs, dtype, dim, b):
    x, gain = torch.randn(2, 13, 3, dim).to(dtype), torch.randn(dim).to(dtype)
    agrees(x, gain, {"pairs": pairs, **tables(13, dim, b)})


def test_half_of_it():
    x, gain = torch.randn(1, 9, 2, 24), torch.randn(24)
    agrees(x, gain, {})
    agrees(x, None, {"pairs": "split", **tables(9, 24, 1)})


def test_any_strides_and_a_gain_of_another_precision():
    x, gain = torch.randn(3, 2, 7, 16).permute(1, 2, 0, 3).half(), torch.randn(16)
    assert not x.is_contiguous()
    given = (x, gain, 1e-6, *tables(7, 16).values())
    torch.testing.assert_close(norm_rope.only("triton")(*given), norm_rope.only("reference")(*given))


@pytest.mark.parametrize(("pairs", "normed", "of"), [("adjacent", True, 2), ("split", True, 1), ("split", False, 1)])
def test_gradients_of_gradients(pairs, normed, of):
    """As a network's slope is trained: the square of a gradient, of x and gain or of x alone, has one of its own."""
    x, gain, given = torch.randn(2, 5, 2, 16), torch.randn(16) if normed else None, tables(5, 16)
    found = []
    for name in ("triton", "reference"):
        leaves = [v.clone().requires_grad_() for v in (x, gain) if v is not None]
        op, w = norm_rope.only(name), torch.linspace(-1, 1, 16).requires_grad_()
        out = op(leaves[0], leaves[1] if normed else None, 1e-5, **given, pairs=pairs)
        slope = torch.autograd.grad((out * w).square().sum(), leaves[:of], create_graph=True)
        found.append(torch.autograd.grad(sum(s.square().sum() for s in slope), [*leaves, w]))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)


def test_the_op_is_registered_whole():
    x, gain = torch.randn(1, 5, 2, 16, requires_grad=True), torch.randn(16, requires_grad=True)
    cos, sin = tables(5, 16).values()
    torch.library.opcheck(_norm_rope, (x, gain, 1e-6, cos, sin, True))
    torch.library.opcheck(_norm_rope, (x, None, 1e-6, cos, sin, False))


def test_a_compiled_graph_stays_whole():
    x, gain, given = torch.randn(1, 5, 2, 16, requires_grad=True), torch.randn(16, requires_grad=True), tables(5, 16)

    def f(x, gain):
        return norm_rope(x, gain, 1e-6, **given)

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    for one, other in zip(*(torch.autograd.grad(g(x, gain).sum(), [x, gain]) for g in (compiled, f)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own forward mode
def test_refusals():
    op, x, gain = norm_rope.only("triton"), torch.zeros(1, 4, 1, 16), torch.ones(16)
    with pytest.raises(Refused, match=r"no kernel for torch.float64"):
        op(x.double(), gain)
    with pytest.raises(Refused, match="head dim 514; kernels take up to 512"):
        op(torch.zeros(1, 4, 1, 514), torch.ones(514))
    with pytest.raises(Refused, match="the last dimension is not contiguous"):
        op(torch.zeros(1, 4, 16, 2).mT, gain)
    with pytest.raises(Refused, match="cos and sin want gradients"):
        op(x, None, 1e-6, torch.ones(4, 16, requires_grad=True), torch.ones(4, 16))
    with pytest.raises(Refused, match="65536 samples; a grid has room for 65535"):
        op(x.expand(65536, -1, -1, -1), gain)
    with pytest.raises(Refused, match=r"only plain PyTorch passes torch.func"):
        torch.func.jvp(partial(op, gain=gain), (x,), (x,))

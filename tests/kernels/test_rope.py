"""Norm and turn of heads: PyTorch's against the formula in float64, the two layouts of pairs, and what is refused."""

from functools import partial

import pytest
import torch

from gen.kernels.dispatch import Refused, explain
from gen.kernels.rope import norm_rope
from tests.kernels import eager
from tests.kernels.compare import Given, holds

PAIRS = pytest.mark.parametrize("pairs", ["adjacent", "split"])


def tables(n, dim, b=None, kind=torch.float32):
    """cos and sin [n, dim] or [b, n, dim] of angles that are another for every channel."""
    angle = torch.rand(*(() if b is None else (b,)), n, dim, dtype=torch.float64) * 7
    return {"cos": angle.cos().to(kind), "sin": angle.sin().to(kind)}


def agrees(backend, x, gain, fixed, **how):
    return holds(Given(norm_rope, fixed), backend, partial(eager.norm_rope, **fixed), (x, gain, 1e-5), **how)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("pairs", "dim"), [("adjacent", 72), ("split", 32)])
def test_against_the_formula(pairs, dim, dtype):
    x, gain = torch.randn(2, 11, 3, dim).to(dtype), torch.randn(dim).to(dtype)
    agrees("torch", x, gain, {})
    for b in (None, 1, 2):
        for given in (gain, None):
            agrees("torch", x, given, {"pairs": pairs, **tables(11, dim, b)})


@PAIRS
def test_the_reference_has_all_derivatives(pairs):
    x, gain = torch.randn(1, 2, 1, 4, dtype=torch.float64, requires_grad=True), torch.randn(4, dtype=torch.float64)
    cos, sin = tables(2, 4, kind=torch.float64).values()
    leaves = [v.requires_grad_() for v in (x, gain, cos, sin)]
    for name in ("reference", "torch"):

        def op(x, gain, cos, sin, name=name):
            return norm_rope.only(name)(x, gain, 1e-5, cos, sin, pairs)

        assert torch.autograd.gradcheck(op, leaves)
        assert torch.autograd.gradgradcheck(op, leaves)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_pair_goes_from_its_first_channel_towards_its_second(backend):
    op, x = norm_rope.only(backend), torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
    quarter = {"cos": torch.zeros(1, 4), "sin": torch.ones(1, 4)}
    assert op(x, **quarter).flatten().tolist() == [-2, 1, -4, 3]
    assert op(x, **quarter, pairs="split").flatten().tolist() == [-3, -4, 1, 2]


@PAIRS
def test_a_turn_keeps_lengths_and_the_norm_makes_them_one(pairs):
    x, angle = torch.randn(2, 5, 3, 8, dtype=torch.float64), torch.rand(5, 4, dtype=torch.float64)
    both = angle.repeat_interleave(2, -1) if pairs == "adjacent" else angle.repeat(1, 2)
    turned = norm_rope(x, cos=both.cos(), sin=both.sin(), pairs=pairs)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    normed = norm_rope(x, torch.ones(8).double(), 0.0, both.cos(), both.sin(), pairs)
    torch.testing.assert_close(normed.square().mean(-1), torch.ones(2, 5, 3).double())


def test_the_dtype_is_that_of_x():
    x = torch.randn(2, 5, 3, 8, dtype=torch.bfloat16)
    for name in ("torch", "reference"):
        assert norm_rope.only(name)(x, None, 1e-6, **tables(5, 8)).dtype == torch.bfloat16
    gain = torch.randn(8)  # a wider gain, as under autocast, is not rounded
    ours, exact = (norm_rope.only(name)(x, gain) for name in ("torch", "reference"))
    assert torch.equal(ours, exact) and ours.dtype == torch.bfloat16


def test_explain(capsys):
    explain(norm_rope, torch.randn(2, 5, 3, 8), torch.ones(8))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "norm_rope"
    assert [line.split()[0] for line in lines[1:]] == ["triton", "torch", "reference"]
    assert "refuses: " in lines[1] and "chosen" in lines[2] and "accepts" in lines[3]
    with pytest.raises(Refused, match="norm_rope: triton refuses: "):
        norm_rope.only("triton")(torch.randn(2, 5, 3, 8), torch.ones(8))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither gain nor cos and sin"),
        ({"gain": torch.ones(4)}, r"a gain is \[4\]; it must be \[8\]"),
        ({"cos": torch.ones(5, 8)}, "cos and sin go together; sin is missing"),
        ({"sin": torch.ones(5, 8), "gain": torch.ones(8)}, "cos and sin go together; cos is missing"),
        ({"cos": torch.ones(5, 4), "sin": torch.ones(5, 4)}, r"cos is \[5, 4\]; it must be \[5, 8\] or \[2, 5, 8\]"),
        ({"cos": torch.ones(5, 8), "sin": torch.ones(3, 5, 8)}, r"sin is \[3, 5, 8\]"),
        ({"cos": torch.ones(5, 8), "sin": torch.ones(5, 8), "pairs": "halves"}, "must be 'adjacent' or 'split'"),
    ],
)
def test_wrong_arguments(given, message):
    with pytest.raises(ValueError, match=message):
        norm_rope(torch.zeros(2, 5, 3, 8), **given)


def test_wrong_heads():
    with pytest.raises(ValueError, match=r"x is \[2, 5, 8\]; it must be \[B, N, H, d\]"):
        norm_rope(torch.zeros(2, 5, 8), torch.ones(8))
    with pytest.raises(ValueError, match="heads of 7 channels"):
        norm_rope(torch.zeros(2, 5, 3, 7), cos=torch.ones(5, 7), sin=torch.ones(5, 7))


@PAIRS
def test_a_compiled_graph_stays_whole(pairs):
    x, gain, given = torch.randn(2, 5, 3, 8, requires_grad=True), torch.ones(8, requires_grad=True), tables(5, 8)

    def f(x, gain):
        return norm_rope(x, gain, 1e-6, **given, pairs=pairs)

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    grads = [torch.autograd.grad(g(x, gain).square().sum(), [x, gain]) for g in (f, compiled)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_the_triton_op_is_traced_without_being_run():
    from gen.kernels.rope.triton_launch import _norm_rope

    x, gain = (torch.randn(*size, device="meta").requires_grad_() for size in ((2, 5, 3, 8), (8,)))
    out = _norm_rope(x, gain, 1e-6, None, None, False)
    assert out.shape == x.shape
    grads = torch.autograd.grad(out.sum(), [x, gain])
    assert [g.shape for g in grads] == [x.shape, gain.shape]


@pytest.mark.gpu
@PAIRS
@pytest.mark.parametrize("dim", [32, 72, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(pairs, dim, dtype):
    x, gain = torch.randn(2, 300, 3, dim).to("cuda", dtype), torch.randn(dim).to("cuda", dtype)
    fixed = {"pairs": pairs, **{name: table.cuda() for name, table in tables(300, dim).items()}}
    for given in (gain, None):
        agrees("triton", x, given, fixed)

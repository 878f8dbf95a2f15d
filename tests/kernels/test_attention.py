"""Attention: every backend that runs here against the formula in float64, and PyTorch's derivatives of all orders."""

from dataclasses import dataclass

import pytest
import torch

from gen.kernels.attention import attention
from gen.kernels.dispatch import Refused, explain
from gen.kernels.rules import Bidirectional, BlockCausal, BlockDiffusion, Causal, ScaleCausal
from gen.models.layers.attention import Attention
from tests.kernels import eager
from tests.kernels.compare import holds

RULES = [Bidirectional(), Causal(), BlockCausal(8), BlockDiffusion(15, 4), ScaleCausal((1, 4, 9, 16))]


def packed(dim=72, n=30, dtype=torch.float32, b=2, heads=3):
    return torch.randn(b, n, 3, heads, dim).to(dtype)


@dataclass(frozen=True)
class Nobody:
    """A rule from elsewhere, under which the first place sees nothing."""

    def unfit(self, n):
        return None

    def allowed(self, q_index, k_index):
        return k_index < q_index


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sdpa_is_about_as_exact_as_plain_products(rule, dtype):
    """PyTorch's flash kernel computes its weights a second time for the gradient, from a rounded logarithm."""
    holds(attention, "sdpa", eager.attention, (packed(dtype=dtype), rule), bound=3.0)
    holds(attention, "sdpa", eager.attention, (packed(32, dtype=dtype), rule, 0.3), bound=3.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_rounds_once(dtype):
    holds(attention, "reference", eager.attention, (packed(dtype=dtype), Causal()), bound=1.0)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_a_query_that_sees_nothing_gets_nothing(backend):
    qkv = packed().requires_grad_()
    out = attention.only(backend)(qkv, Nobody())
    assert not out[:, 0].any()
    (grad,) = torch.autograd.grad(out.sum(), qkv)
    assert grad.isfinite().all()
    torch.testing.assert_close(out[:, 1], qkv[:, 0, 2])  # the second sees the first alone


def test_the_reference_has_all_derivatives():
    qkv = torch.randn(1, 4, 3, 1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention.only("reference")(x, BlockCausal(2)), qkv)
    assert torch.autograd.gradgradcheck(lambda x: attention.only("reference")(x, BlockCausal(2)), qkv)


def test_packed_tensors_are_read_where_they_lie(monkeypatch):
    def copied(*args, **kwargs):
        raise AssertionError("copied")

    qkv = packed()
    for name in ("contiguous", "clone", "reshape"):
        monkeypatch.setattr(torch.Tensor, name, copied)
    out = attention(qkv)
    assert out.is_contiguous()  # [B, N, H, d], as the next product wants it


def test_explain_names_the_kernel_and_every_reason(capsys):
    explain(attention, packed().double(), BlockDiffusion(15, 4))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "attention"
    assert [line.split()[0] for line in lines[1:]] == ["sdpa", "triton", "flex", "xformers", "reference"]
    assert lines[1].split("chosen ")[1] in ("(flash attention)", "(plain products)")
    assert "refuses: tensors lie on cpu" in lines[2]
    assert "refuses: no FlexAttention of torch.float64" in lines[3]
    assert "refuses: it has no BlockDiffusion" in lines[4]
    assert lines[5].split() == ["reference", "willing"]


def test_refusals():
    with pytest.raises(Refused, match="attention: flex refuses: FlexAttention has no gradient on cpu"):
        attention.only("flex")(packed().requires_grad_())
    with pytest.raises(Refused, match="attention: triton refuses: "):
        attention.only("triton")(packed())
    with pytest.raises(Refused, match="attention: xformers refuses: "):
        attention.only("xformers")(packed())
    # Elsewhere a mask of N x N is refused, so that a kernel that skips tiles is asked.
    with pytest.raises(Refused, match="sdpa refuses: on meta BlockCausal would be a mask of N x N"):
        attention.only("sdpa")(packed().to("meta"), BlockCausal(4))


@pytest.mark.parametrize("shape", [(2, 30, 3, 72), (2, 30, 2, 3, 72)])
def test_wrong_shapes(shape):
    with pytest.raises(ValueError, match=r"it must be \[B, N, 3, H, d\]"):
        attention(torch.zeros(shape))


def test_a_rule_of_another_length():
    with pytest.raises(ValueError, match=r"qkv has 30 places; BlockDiffusion\(length=16, block=4\) is a rule of 32"):
        attention(packed(), BlockDiffusion(16, 4))


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_compiled_graph_stays_whole(rule):
    qkv = packed().requires_grad_()
    compiled = torch.compile(lambda x: attention(x, rule).square(), backend="aot_eager", fullgraph=True)
    out = compiled(qkv)
    assert torch.equal(out, attention(qkv, rule).square())
    assert torch.equal(*(torch.autograd.grad(o.sum(), qkv)[0] for o in (out, attention(qkv, rule).square())))


def test_the_triton_op_is_traced_without_being_run():
    from gen.kernels.backends.attention_triton import _attention

    qkv = packed().to("meta").requires_grad_()
    out, lse = _attention(qkv, [1], 0.5)
    assert out.shape == (2, 30, 3, 72)
    assert lse.shape == (2, 3, 30)
    (grad,) = torch.autograd.grad(out.sum(), qkv)
    assert grad.shape == qkv.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_computes_what_it_did_before_to_the_bit(dtype):
    layer = Attention(144, 2).to(dtype)
    h = torch.randn(2, 17, 144, dtype=dtype, requires_grad=True)
    q, k, v = layer.qkv(h).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    before = layer.proj(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    now = layer(h)
    assert torch.equal(now, before)
    leaves = [h, *layer.parameters()]
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), leaves) for out in (now, before)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # PyTorch's own compiler
@pytest.mark.parametrize("rule", [Bidirectional(), BlockDiffusion(32, 4)], ids=str)
def test_flex_agrees_without_gradients(rule):
    qkv = packed(n=64)
    torch.testing.assert_close(attention.only("flex")(qkv, rule), attention.only("reference")(qkv, rule))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["sdpa", "flex", "triton", "xformers"])
@pytest.mark.parametrize("dim", [32, 64, 72, 96, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(backend, dim, dtype):
    for rule, n in ((Bidirectional(), 300), (Causal(), 300), (BlockDiffusion(200, 16), 400)):
        qkv = packed(dim, n, dtype).cuda()
        if not attention.only(backend).verdicts(qkv, rule)[backend].startswith("refuses"):
            ours = backend == "triton"
            holds(attention, backend, eager.attention, (qkv, rule), bound=2.0 if ours else 3.0, repeats=ours)

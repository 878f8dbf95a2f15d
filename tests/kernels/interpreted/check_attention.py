"""Our attention kernels, interpreted: forward and backward, every rule, head dims of one piece and of two."""

import pytest
import torch

from gen.kernels.attention import attention
from gen.kernels.backends.attention_triton import _attention
from gen.kernels.dispatch import Refused
from gen.kernels.rules import Bidirectional, BlockCausal, BlockDiffusion, Causal, ScaleCausal, encode
from tests.kernels import eager
from tests.kernels.compare import holds

CASES = [
    (Bidirectional(), 37, 32),
    (Causal(), 18, 128),
    (BlockCausal(8), 48, 16),
    (BlockDiffusion(18, 4), 36, 72),
    (ScaleCausal((1, 4, 9, 16)), 30, 24),
]


@pytest.mark.parametrize(("rule", "n", "dim"), CASES, ids=str)
def test_float32(rule, n, dim):
    holds(attention, "triton", eager.attention, (torch.randn(1, n, 3, 1, dim), rule))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    holds(attention, "triton", eager.attention, (torch.randn(2, 10, 3, 1, 40).to(dtype), Causal(), 0.2))


def test_any_strides_are_read_where_they_lie():
    qkv = torch.randn(11, 2, 2, 3, 32).permute(1, 0, 3, 2, 4)  # [2, 11, 3, 2, 32]
    assert not qkv.is_contiguous()
    torch.testing.assert_close(attention.only("triton")(qkv), attention.only("reference")(qkv))


def test_the_op_is_registered_whole():
    qkv = torch.randn(1, 8, 3, 1, 16, requires_grad=True)
    torch.library.opcheck(_attention, (qkv, encode(BlockCausal(5)), 0.25))


def test_a_compiled_graph_stays_whole():
    qkv = torch.randn(1, 8, 3, 1, 16, requires_grad=True)
    op = attention.only("triton")
    compiled = torch.compile(lambda x: op(x, Causal()) * 2, backend="aot_eager", fullgraph=True)
    grads = [torch.autograd.grad(f(qkv).sum(), qkv)[0] for f in (compiled, lambda x: op(x, Causal()) * 2)]
    assert torch.equal(*grads)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own forward mode
def test_refusals():
    op = attention.only("triton")
    with pytest.raises(Refused, match=r"no kernel for torch.float64"):
        op(torch.zeros(1, 4, 3, 1, 32, dtype=torch.float64))
    with pytest.raises(Refused, match="head dim 192; kernels take 16 to 128"):
        op(torch.zeros(1, 4, 3, 1, 192))
    with pytest.raises(Refused, match="65536 heads in all; a grid has room for 65535"):
        op(torch.zeros(1, 1, 3, 1, 16).expand(65536, -1, -1, -1, -1))
    with pytest.raises(Refused, match="do not lie side by side"):
        op(torch.zeros(1, 4, 3, 32, 2).transpose(3, 4))
    with pytest.raises(Refused, match=r"only plain PyTorch passes torch.func"):
        torch.func.jvp(op, (torch.zeros(1, 4, 3, 1, 32),), (torch.zeros(1, 4, 3, 1, 32),))
    with pytest.raises(Refused, match=r"only plain PyTorch passes torch.func"):
        torch.func.vmap(op)(torch.zeros(2, 1, 4, 3, 1, 32))

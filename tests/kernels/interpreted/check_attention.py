"""Our attention kernels, interpreted: forward and backward, every rule, head dims of one piece and of two."""

from functools import partial

import pytest
import torch

from gen.kernels.attention import attention, packed_attention
from gen.kernels.attention.rules import Bidirectional, BlockCausal, BlockDiffusion, Causal, ScaleCausal, encode
from gen.kernels.attention.triton_launch import _packed_attention, forward
from gen.kernels.dispatch import Refused
from tests.kernels import eager
from tests.kernels.compare import Given, holds

CASES = [
    (Bidirectional(), 37, 32),
    (Causal(), 18, 128),
    (BlockCausal(8), 48, 16),
    (BlockDiffusion(18, 4), 36, 72),
    (ScaleCausal((1, 4, 9, 16)), 30, 24),
]


@pytest.mark.parametrize(("rule", "n", "dim"), CASES, ids=str)
def test_float32(rule, n, dim):
    holds(packed_attention, "triton", eager.packed_attention, (torch.randn(1, n, 3, 1, dim), rule))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    holds(packed_attention, "triton", eager.packed_attention, (torch.randn(2, 10, 3, 1, 40).to(dtype), Causal(), 0.2))


def parts(nq, nk, heads=2, shared=2, dim=24, b=1):
    """q [b, nq, heads, dim], and k and v [b, nk, heads / shared, dim]."""
    return tuple(torch.randn(b, n, h, dim) for n, h in ((nq, heads), *[(nk, heads // shared)] * 2))


# Keys that are more than queries and fewer, the newest of a cache, half of a rule; masks for all, by sample, by key.
UNPACKED = [
    (Bidirectional(), 21, 37, 0, None, 2),
    (Bidirectional(), 35, 20, 0, (1, 35, 20), 1),
    (Causal(), 5, 40, 35, (2, 5, 40), 2),
    (BlockCausal(8), 16, 40, 16, (2, 1, 40), 2),
    (BlockDiffusion(18, 4), 18, 36, 0, None, 1),
]


@pytest.mark.parametrize(("rule", "nq", "nk", "start", "mask", "shared"), UNPACKED, ids=str)
def test_three_parts(rule, nq, nk, start, mask, shared):
    """Heads of one piece where none are shared, of two where two of q share one of k and v."""
    mask_ = None if mask is None else (torch.rand(mask) < 0.4) | (torch.arange(nk) == 0)
    q, k, v = parts(nq, nk, 2 * shared, shared, 40 if shared == 2 else 24, 1 if mask is None else 2)
    holds(attention, "triton", eager.attention, (q, k, v, rule, 0.2, mask_, start))


def test_queries_that_see_nothing_get_nothing():
    leaves, seen = [v.requires_grad_() for v in parts(19, 37)], torch.rand(1, 19, 37) < 0.3
    seen[0, 3] = seen[0, 16:] = False
    found = []
    for name in ("triton", "reference"):
        out = attention.only(name)(*leaves, attn_mask=seen)
        found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert not found[0][0][0, 3].any() and not found[0][0][0, 16:].any()
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours, exact)


def test_a_cache_is_read_where_it_lies():
    """Heads before places, and more places than are seen."""
    (q,), store = parts(5, 1)[:1], torch.randn(2, 1, 1, 60, 24)
    k, v = store.transpose(2, 3)[:, :, :37]
    given = (q, k, v, Causal(), None, None, 32)
    torch.testing.assert_close(*(attention.only(name)(*given) for name in ("triton", "reference")))


@pytest.mark.parametrize("pairs", ["adjacent", "split"])
def test_after_norm_and_turn(pairs):
    angle, gains = torch.rand(11, 24), [torch.randn(24) for _ in "qk"]
    fixed = {"cos": angle.cos(), "sin": angle.sin(), "pairs": pairs}
    op, plain = Given(packed_attention, fixed), partial(eager.packed_attention, **fixed)
    given = (Causal(), None, *gains) if pairs == "adjacent" else (BlockCausal(4), 0.3)
    holds(op, "triton", plain, *((torch.randn(1, 11, 3, 2, 24), *given) for _ in range(2)))


def test_any_strides_are_read_where_they_lie():
    qkv = torch.randn(11, 2, 2, 3, 32).permute(1, 0, 3, 2, 4)  # [2, 11, 3, 2, 32]
    assert not qkv.is_contiguous()
    torch.testing.assert_close(packed_attention.only("triton")(qkv), packed_attention.only("reference")(qkv))


def test_the_op_is_registered_whole():
    qkv = torch.randn(1, 8, 3, 1, 16, requires_grad=True)
    torch.library.opcheck(_packed_attention, (qkv, encode(BlockCausal(5)), 0.25))
    leaves, seen = [v.requires_grad_() for v in parts(4, 8, dim=16)], torch.ones(1, 1, 8, dtype=torch.bool)
    torch.library.opcheck(forward, (*leaves, seen, encode(BlockCausal(5)), 2, 0.25))
    torch.library.opcheck(forward, (*leaves, None, encode(Bidirectional()), 0, 0.25))


def test_a_compiled_graph_stays_whole():
    qkv = torch.randn(1, 8, 3, 1, 16, requires_grad=True)
    op = packed_attention.only("triton")
    compiled = torch.compile(lambda x: op(x, Causal()) * 2, backend="aot_eager", fullgraph=True)
    grads = [torch.autograd.grad(f(qkv).sum(), qkv)[0] for f in (compiled, lambda x: op(x, Causal()) * 2)]
    assert torch.equal(*grads)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own forward mode
def test_refusals():
    op = packed_attention.only("triton")
    with pytest.raises(Refused, match=r"no kernel for torch.float64"):
        op(torch.zeros(1, 4, 3, 1, 32, dtype=torch.float64))
    with pytest.raises(Refused, match="head dim 192; kernels take 16 to 128"):
        op(torch.zeros(1, 4, 3, 1, 192))
    with pytest.raises(Refused, match="65536 heads in all; a grid has room for 65535"):
        op(torch.zeros(1, 1, 3, 1, 16).expand(65536, -1, -1, -1, -1))
    with pytest.raises(Refused, match="the last dimension is not contiguous"):
        op(torch.zeros(1, 4, 3, 32, 2).transpose(3, 4))
    with pytest.raises(Refused, match=r"only plain PyTorch passes torch.func"):
        torch.func.jvp(op, (torch.zeros(1, 4, 3, 1, 32),), (torch.zeros(1, 4, 3, 1, 32),))
    q, k, v = parts(4, 8)
    with pytest.raises(Refused, match="triton refuses: mixed dtypes"):
        attention.only("triton")(q, k.half(), v.half())
    with pytest.raises(Refused, match=r"only plain PyTorch passes torch.func"):
        torch.func.vmap(op)(torch.zeros(2, 1, 4, 3, 1, 32))

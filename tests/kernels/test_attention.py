"""Attention: every backend that runs here against the formula in float64, and PyTorch's derivatives of all orders."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gen.kernels.attention import (
    Bidirectional,
    BlockCausal,
    BlockDiffusion,
    Causal,
    ScaleCausal,
    attention,
    packed_attention,
)
from gen.kernels.attention.flex_attention import block_mask
from gen.kernels.dispatch import Refused, explain
from gen.models.layers.attention import Attention
from gen.models.layers.rope import Rope, interleaved_angles
from tests.kernels import eager
from tests.kernels.compare import Given, holds

RULES = [Bidirectional(), Causal(), BlockCausal(8), BlockDiffusion(15, 4), ScaleCausal((1, 4, 9, 16))]


def packed(dim=72, n=30, dtype=torch.float32, b=2, heads=3):
    return torch.randn(b, n, 3, heads, dim).to(dtype)


def parts(nq, nk, heads=4, shared=2, dim=72, dtype=torch.float32, b=2):
    """q [b, nq, heads, dim], and k and v [b, nk, heads / shared, dim]."""
    return tuple(torch.randn(b, n, h, dim).to(dtype) for n, h in ((nq, heads), *[(nk, heads // shared)] * 2))


def turned(dim, n, pairs="adjacent"):
    angle = torch.rand(n, dim) * 7
    return {"cos": angle.cos(), "sin": angle.sin(), "pairs": pairs}


def some(b, nq, nk):
    """A mask under which every query sees a key."""
    return (torch.rand(b, nq, nk) < 0.4) | (torch.arange(nk) == 0)


# Keys that are more than queries and fewer, the newest of a cache, half of a rule; masks for all, by sample, by key.
UNPACKED = [
    (Bidirectional(), 21, 37, 0, None),
    (Bidirectional(), 37, 20, 0, (1, 37, 20)),
    (Causal(), 30, 40, 0, None),
    (Causal(), 5, 40, 35, (2, 5, 40)),
    (BlockCausal(8), 16, 40, 16, (2, 1, 40)),
    (BlockDiffusion(18, 4), 18, 36, 0, None),
    (ScaleCausal((1, 4, 9)), 9, 14, 5, None),
]


@dataclass(frozen=True)
class Nobody:
    """A rule from elsewhere, under which the first place sees nothing."""

    def incompatible_reason(self, n):
        return None

    def allowed(self, q_index, k_index):
        return k_index < q_index


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])


@pytest.mark.parametrize("rule", RULES, ids=str)
@DTYPES
def test_sdpa_is_about_as_exact_as_plain_products(rule, dtype):
    """PyTorch's flash kernel computes its weights a second time for the gradient, from a rounded logarithm."""
    holds(packed_attention, "sdpa", eager.packed_attention, (packed(dtype=dtype), rule), bound=3.0)
    holds(packed_attention, "sdpa", eager.packed_attention, (packed(32, dtype=dtype), rule, 0.3), bound=3.0)


@pytest.mark.parametrize("rule", [BlockDiffusion(130, 16), BlockCausal(32), ScaleCausal((64, 64, 132))], ids=str)
@DTYPES
def test_tiles_leave_out_nothing_that_a_rule_allows(rule, dtype):
    holds(packed_attention, "tiles", eager.packed_attention, (packed(16, 260, dtype, 1, 2), rule), bound=3.0)
    answers = packed_attention.explain(packed(16, 260, dtype, 1, 2), rule)
    assert answers["tiles"] == "chosen"
    q, k, v = parts(260, 300, 2, 2, 16, dtype, 1)
    qkv = packed(16, 260, dtype, 1, 2)
    exact = packed_attention.only("reference")(qkv.double(), Nobody()).to(dtype)
    torch.testing.assert_close(packed_attention.only("tiles")(qkv, Nobody()), exact, rtol=2e-2, atol=2e-2)
    if isinstance(rule, BlockCausal):
        holds(attention, "tiles", eager.attention, (q, k, v, rule, 0.3, some(1, 260, 300), 40), bound=4.0)
        holds(attention, "tiles", eager.attention, (q, k, v, rule, None, some(1, 1, 300), 40), bound=4.0)


def documents(b, *lengths):
    """Documents of these lengths, the last sample's in the other order."""
    row = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return torch.stack([row] * (b - 1) + [row.flip(0)])


@pytest.mark.parametrize("backend", ["tiles", "sdpa"])
@DTYPES
def test_documents_are_kept_apart_under_every_rule(backend, dtype):
    rows = documents(2, 90, 60, 150)
    for rule in (Bidirectional(), Causal(), BlockCausal(32), BlockDiffusion(150, 16)):
        ids = torch.cat([rows[:, :150]] * 2, 1) if isinstance(rule, BlockDiffusion) else rows
        q, k, v = parts(300, 300, 4, 2, 16, dtype)
        holds(attention, backend, eager.attention, (q, k, v, rule, None, None, 0, ids), bound=4.0)
    given = (*parts(260, 300, 4, 2, 16, dtype), BlockCausal(32), 0.3, some(2, 260, 300), 40, rows)
    holds(attention, backend, eager.attention, given, bound=4.0)
    exact = attention.only("reference")(*(v.double() for v in given[:3]), *given[3:])
    torch.testing.assert_close(attention.only(backend)(*given).double(), exact, rtol=2e-2, atol=2e-2)


def test_no_tensor_of_n_times_n_in_either_pass_of_tiles():
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for each in out if isinstance(out, tuple | list) else [out]:
                self.numbers = max(self.numbers, each.numel() if isinstance(each, torch.Tensor) else 0)
            return out

    sizes = []
    for n in (1024, 2048):
        leaves = [v.requires_grad_() for v in parts(2 * n, 2 * n, 2, 2, 8, b=1)]
        with Largest() as seen:
            out = attention.only("tiles")(*leaves, BlockDiffusion(n, 16))
            torch.autograd.grad(out.sum(), leaves)
        sizes.append(seen.numbers)
    assert sizes[1] <= 2 * sizes[0] < 2048**2


def test_tiles_are_for_rules_that_forbid_much_on_a_cpu():
    def reason(*args, **kwargs):
        return attention.explain(*args, **kwargs)["tiles"]

    long = parts(260, 260, 2, 1, 8)
    assert "Bidirectional needs no mask" in reason(*long)
    assert "Causal needs no mask" in reason(*long, Causal())
    assert "30 queries and 30 keys are too few" in reason(*parts(30, 30, 2, 1, 8), BlockCausal(4))
    assert "its tiles hold 100% of all scores" in reason(*long, BlockCausal(260))
    assert "it is for a CPU, not meta" in reason(*(t.to("meta") for t in long), BlockCausal(4))


@pytest.mark.parametrize(("rule", "nq", "nk", "start", "mask"), UNPACKED, ids=str)
@DTYPES
def test_sdpa_of_three_parts(rule, nq, nk, start, mask, dtype):
    """Where few keys are allowed, the largest error of PyTorch's is a little further from that of plain products."""
    for shared in (1, 2):
        mask_ = None if mask is None else some(*mask)
        given = (*parts(nq, nk, shared=shared, dtype=dtype), rule, 0.2, mask_, start)
        holds(attention, "sdpa", eager.attention, given, bound=4.0)


@pytest.mark.parametrize("pairs", ["adjacent", "split"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sdpa_after_norm_and_turn(pairs, dtype):
    for fixed in (turned(72, 30, pairs), {}):
        op, plain = Given(packed_attention, fixed), partial(eager.packed_attention, **fixed)
        gains = [torch.randn(72).to(dtype) for _ in "qk"]
        holds(op, "sdpa", plain, (packed(dtype=dtype), Causal(), None, *gains, 1e-5), bound=3.0)
        if fixed:
            holds(op, "sdpa", plain, (packed(dtype=dtype), BlockCausal(8), 0.3), bound=3.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_rounds_once(dtype):
    holds(packed_attention, "reference", eager.packed_attention, (packed(dtype=dtype), Causal()), bound=1.0)
    gains, fixed = [torch.randn(72).to(dtype) for _ in "qk"], turned(72, 30)
    given = (packed(dtype=dtype), Causal(), None, *gains)
    holds(Given(packed_attention, fixed), "reference", partial(eager.packed_attention, **fixed), given, bound=1.0)
    holds(attention, "reference", eager.attention, (*parts(5, 9, dtype=dtype), Causal(), 0.2, None, 4), bound=1.0)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_a_query_that_sees_nothing_gets_nothing(backend):
    qkv = packed().requires_grad_()
    out = packed_attention.only(backend)(qkv, Nobody())
    assert not out[:, 0].any()
    (grad,) = torch.autograd.grad(out.sum(), qkv)
    assert grad.isfinite().all()
    torch.testing.assert_close(out[:, 1], qkv[:, 0, 2])  # the second sees the first alone


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_a_query_whose_mask_is_empty_gets_nothing(backend):
    leaves = [v.requires_grad_() for v in parts(6, 9)]
    seen = some(2, 6, 9)
    seen[0, 2] = seen[1, 4] = False
    out = attention.only(backend)(*leaves, Causal(), start_pos=3, attn_mask=seen)
    assert not out[0, 2].any() and not out[1, 4].any()
    assert out[1, 2].any()
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), leaves))


def test_packed_and_unpacked_agree():
    qkv = packed()
    for rule, scale in ((Bidirectional(), None), (Causal(), 0.3)):
        assert torch.equal(packed_attention(qkv, rule, scale), attention(*qkv.unbind(2), rule, scale))


def test_the_last_queries_of_a_cache_are_those_of_the_whole():
    qkv = packed(dtype=torch.float64)
    q, k, v = qkv.unbind(2)
    for rule in (Causal(), BlockCausal(8)):
        whole = packed_attention(qkv, rule)
        torch.testing.assert_close(attention(q[:, 24:], k, v, rule, start_pos=24), whole[:, 24:])


def test_the_reference_has_all_derivatives():
    qkv = torch.randn(1, 4, 3, 1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: packed_attention.only("reference")(x, BlockCausal(2)), qkv)
    assert torch.autograd.gradgradcheck(lambda x: packed_attention.only("reference")(x, BlockCausal(2)), qkv)
    leaves = [v.requires_grad_() for v in parts(2, 3, 2, 2, 3, torch.float64, b=1)]
    assert torch.autograd.gradcheck(lambda *x: attention.only("reference")(*x, Causal(), start_pos=1), leaves)


def test_packed_tensors_are_read_where_they_lie(monkeypatch):
    def copied(*args, **kwargs):
        raise AssertionError("copied")

    qkv = packed()
    for name in ("contiguous", "clone", "reshape"):
        monkeypatch.setattr(torch.Tensor, name, copied)
    out = packed_attention(qkv)
    assert out.is_contiguous()  # [B, N, H, d], as the next product wants it


def test_explain_names_the_kernel_and_every_reason(capsys):
    explain(packed_attention, packed().double(), BlockDiffusion(15, 4))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "packed_attention"
    assert " ".join(lines.pop(1).split()) == "bmm refuses: it is for bfloat16 on a CPU"
    assert " ".join(lines.pop(1).split()) == "tiles refuses: 30 queries and 30 keys are too few"
    assert [line.split()[0] for line in lines[1:]] == ["sdpa", "triton", "flex", "xformers", "dense", "reference"]
    assert lines[1].split("chosen ")[1] in ("(flash attention)", "(plain products)")
    assert "refuses: tensors lie on cpu" in lines[2]
    assert "refuses: no FlexAttention of torch.float64" in lines[3]
    assert "refuses: it has no BlockDiffusion" in lines[4]
    assert [line.split() for line in lines[5:]] == [["dense", "accepts"], ["reference", "accepts"]]
    explain(packed_attention, packed(), cos=torch.ones(30, 72), sin=torch.zeros(30, 72))
    assert capsys.readouterr().out.splitlines()[3].endswith("after norm_rope by torch)")
    explain(attention, *parts(5, 9), attn_mask=some(2, 5, 9))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "attention" and "chosen (" in lines[3]
    assert "refuses: q, k and v are not packed" in lines[1]
    assert "refuses: a mask that is no rule would need" in lines[5]
    assert "refuses: it has no mask without a bias" in lines[6]


def test_refusals():
    with pytest.raises(Refused, match="packed_attention: flex refuses: FlexAttention has no gradient on cpu"):
        packed_attention.only("flex")(packed().requires_grad_())
    with pytest.raises(Refused, match="packed_attention: triton refuses: "):
        packed_attention.only("triton")(packed())
    with pytest.raises(Refused, match="packed_attention: xformers refuses: "):
        packed_attention.only("xformers")(packed())
    # Elsewhere a mask of N x N is refused, so that a kernel that skips tiles is asked.
    with pytest.raises(Refused, match="sdpa refuses: on meta BlockCausal would be a mask of N x N"):
        packed_attention.only("sdpa")(packed().to("meta"), BlockCausal(4))
    assert packed_attention.only("dense")(packed().to("meta"), BlockCausal(4)).shape == (2, 30, 3, 72)
    away = [v.to("meta") for v in parts(5, 9)]
    with pytest.raises(Refused, match="sdpa refuses: on meta Causal would be a mask of N x N"):
        attention.only("sdpa")(*away, Causal(), start_pos=4)
    with pytest.raises(Refused, match="sdpa refuses: on meta it has no kernel of shared heads under a mask"):
        attention.only("sdpa")(*away, attn_mask=some(1, 1, 9).to("meta"))
    with pytest.raises(Refused, match="xformers refuses: shared heads would be copied"):
        attention.only("xformers")(*parts(5, 9))
    with pytest.raises(Refused, match="xformers refuses: its causal mask starts at one position for both"):
        attention.only("xformers")(*parts(5, 9, shared=1), Causal(), start_pos=4)


@pytest.mark.parametrize("shape", [(2, 30, 3, 72), (2, 30, 2, 3, 72)])
def test_wrong_shapes(shape):
    with pytest.raises(ValueError, match=r"it must be \[B, N, 3, H, d\]"):
        packed_attention(torch.zeros(shape))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.zeros(2, 5, 8), *parts(5, 9)[1:]), r"given q \[2, 5, 8\], k \[2, 9, 2, 72\]"),
        ((*parts(5, 9)[:2], torch.zeros(2, 8, 2, 72)), r"they must be \[B, Nq, H, d\] and twice"),
        (parts(5, 9, heads=3, shared=1)[:1] + parts(5, 9)[1:], "H a multiple of Hkv"),
        (parts(5, 9, b=1)[:1] + parts(5, 9)[1:], "B and d must be the same"),
        ((*parts(5, 9), Bidirectional(), None, torch.ones(2, 5, 9)), r"attn_mask is torch.float32 \[2, 5, 9\]"),
        ((*parts(5, 9), Bidirectional(), None, some(2, 4, 9)), r"attn_mask is torch.bool \[2, 4, 9\]; it must be bool"),
        ((*parts(5, 9), Causal(), None, None, -1), "start_pos is -1; it must be at least 0"),
        (
            (*parts(5, 9), Causal(), None, None, 0, torch.zeros(2, 8).long()),
            r"documents are torch.int64 \[2, 8\]; they",
        ),
        ((*parts(5, 9), BlockDiffusion(4, 2)), "queries and keys are of 9 positions; .* is a rule of 8 positions"),
    ],
)
def test_wrong_parts(given, message):
    with pytest.raises(ValueError, match=message):
        attention(*given)


def test_wrong_norms_and_turns():
    with pytest.raises(ValueError, match=r"packed_attention: a gain is \[8\]; it must be \[72\]"):
        packed_attention(packed(), q_gain=torch.ones(72), k_gain=torch.ones(8))
    with pytest.raises(ValueError, match=r"cos is \[29, 72\]; it must be \[30, 72\] or \[2, 30, 72\]"):
        packed_attention(packed(), cos=torch.ones(29, 72), sin=torch.ones(30, 72))
    with pytest.raises(ValueError, match="packed_attention: cos and sin go together; cos is missing"):
        packed_attention(packed(), sin=torch.ones(30, 72))


@pytest.mark.parametrize("name", ["q_gain", "k_gain"])
@pytest.mark.parametrize("backend", ["sdpa", "dense"])
def test_one_of_q_and_k_is_normed(backend, name):
    qkv, gain = torch.randn(2, 5, 3, 2, 8).double(), torch.rand(8).double()
    exact = packed_attention.only("reference")(qkv, **{name: gain})
    torch.testing.assert_close(packed_attention.only(backend)(qkv, **{name: gain}), exact, rtol=1e-12, atol=1e-12)
    assert "after norm_rope by" in packed_attention.explain(qkv, **{name: gain})["sdpa"]


def test_no_sample_at_all():
    qkv, angle = torch.randn(0, 5, 3, 2, 8), torch.rand(5, 8)
    for backend in ("sdpa", "dense", "reference"):
        assert packed_attention.only(backend)(qkv, cos=angle.cos(), sin=angle.sin()).shape == (0, 5, 2, 8)


def test_a_compiled_graph_of_any_shape_stays_whole():
    q, k = torch.randn(2, 5, 4, 8), torch.randn(2, 5, 2, 8)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(q, k, k), attention(q, k, k))
    torch.testing.assert_close(compiled(k, k, k), attention(k, k, k))


def test_a_rule_of_another_length():
    with pytest.raises(ValueError, match=r"qkv has 30 positions; BlockDiffusion\(length=16, block=4\) is a rule of 32"):
        packed_attention(packed(), BlockDiffusion(16, 4))


def test_a_compiled_graph_of_all_rules_stays_whole():
    qkv = packed().requires_grad_()

    def each(x):
        return tuple(packed_attention(x, rule).square() for rule in RULES)

    outs = torch.compile(each, backend="aot_eager", fullgraph=True)(qkv), each(qkv)
    for one, other in zip(*outs, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(*(torch.autograd.grad(o.sum(), qkv, retain_graph=True)[0] for o in (one, other)))


def test_a_compiled_graph_of_three_parts_stays_whole():
    leaves, fixed, gain = [v.requires_grad_() for v in parts(6, 30)], turned(72, 30), torch.randn(72)
    rule = BlockCausal(8)

    def f(q, k, v):
        q, k = attention(q, k, v, rule, start_pos=24), packed_attention(packed_, rule, None, gain, gain, **fixed)
        return q, k

    packed_ = packed()
    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    for one, other in zip(compiled(*leaves), f(*leaves), strict=True):
        assert torch.equal(one, other)
    grads = [torch.autograd.grad(g(*leaves)[0].square().sum(), leaves) for g in (compiled, f)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_the_triton_ops_are_traced_without_being_run():
    from gen.kernels.attention.triton_launch import _packed_attention, forward

    leaves = [v.to("meta").requires_grad_() for v in parts(5, 9)]
    out, lse = forward(*leaves, None, [1], 4, 0.5)
    assert out.shape == leaves[0].shape
    assert lse.shape == (2, 4, 5)
    assert [g.shape for g in torch.autograd.grad(out.sum(), leaves)] == [v.shape for v in leaves]
    qkv = packed().to("meta").requires_grad_()
    out, lse = _packed_attention(qkv, [1], 0.5)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("normed", [True, False])
def test_the_layer_norms_and_turns_as_it_did_before_to_the_bit(dtype, normed):
    layer, rope = Attention(96, 4, qk_norm=normed).to(dtype), Rope(interleaved_angles(24, 3))
    for norm in (layer.q_norm, layer.k_norm) if normed else ():
        torch.nn.init.normal_(norm.weight)
    h = torch.randn(2, 9, 96, dtype=dtype)
    q, k, v = layer.qkv(h).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    q, k = layer.q_norm(q), layer.k_norm(k)
    q, k = ((z * rope.freqs_cos + across(z) * rope.freqs_sin).to(dtype) for z in (q, k))
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.equal(layer(h, rope), layer.proj(mixed.transpose(1, 2).flatten(2)))


def across(h):
    return torch.stack([-h[..., 1::2], h[..., ::2]], -1).flatten(-2)


@pytest.mark.parametrize("rule", [Bidirectional(), BlockCausal(48), BlockDiffusion(250, 16)], ids=str)
def test_the_block_mask_of_flex_is_that_of_the_whole_mask(rule):
    from torch.nn.attention.flex_attention import create_block_mask

    rows = documents(2, 250, 50, 200)
    cpu = torch.device("cpu")
    for ids in (None, rows):
        ours = block_mask(rule, 500, 500, 0, cpu, ids)
        theirs = create_block_mask(ours.mask_mod, None if ids is None else 2, None, 500, 500, device="cpu")
        assert torch.equal(ours.to_dense(), theirs.to_dense())
        for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        dense = ours.mask_mod(torch.arange(1)[:, None, None], None, torch.arange(500)[:, None], torch.arange(500))
        allowed = attention.complete(*parts(500, 500, 1, 1, 8), rule, documents=ids).allowed()
        assert torch.equal(dense.broadcast_to(1, 500, 500)[0], allowed.broadcast_to(2, 500, 500)[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # PyTorch's own compiler
@pytest.mark.parametrize("rule", [Bidirectional(), BlockDiffusion(32, 4)], ids=str)
def test_flex_agrees_without_gradients(rule):
    qkv = packed(n=64)
    torch.testing.assert_close(packed_attention.only("flex")(qkv, rule), packed_attention.only("reference")(qkv, rule))
    given = (*parts(32, 64), rule, 0.2)
    torch.testing.assert_close(*(attention.only(name)(*given) for name in ("flex", "reference")))
    given = (*parts(64, 64), rule, 0.2, None, 0, documents(2, 16, 16, 16, 16))
    torch.testing.assert_close(*(attention.only(name)(*given) for name in ("flex", "reference")))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["sdpa", "flex", "triton", "xformers"])
@pytest.mark.parametrize("dim", [32, 64, 72, 96, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(backend, dim, dtype):
    for rule, n in ((Bidirectional(), 300), (Causal(), 300), (BlockDiffusion(200, 16), 400)):
        qkv = packed(dim, n, dtype).cuda()
        if not packed_attention.only(backend).explain(qkv, rule)[backend].startswith("refuses"):
            ours = backend == "triton"
            holds(
                packed_attention, backend, eager.packed_attention, (qkv, rule), bound=2.0 if ours else 3.0, repeats=ours
            )


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["sdpa", "flex", "triton"])
@pytest.mark.parametrize("dim", [64, 72, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_three_parts_on_a_gpu(backend, dim, dtype):
    for rule, nq, nk, first, mask in UNPACKED:
        seen = None if mask is None else some(*mask).cuda()
        given = (*(v.cuda() for v in parts(nq, nk, dim=dim, dtype=dtype)), rule, 0.2, seen, first)
        if not attention.only(backend).explain(*given)[backend].startswith("refuses"):
            ours = backend == "triton"
            holds(attention, backend, eager.attention, given, bound=2.0 if ours else 3.0, repeats=ours)

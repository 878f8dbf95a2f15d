"""Attention as two products on a CPU: as exact as the formula written out, and only where it is asked nothing else."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from gen.kernels.attention import Causal, packed_attention
from tests.kernels.compare import error_ratio


def eager(qkv):
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return ((q @ k.mT * qkv.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize(("n", "heads", "d"), [(64, 6, 64), (100, 3, 72), (1024, 2, 32)])
@torch.no_grad()
def test_products_are_as_exact_as_the_formula(n, heads, d):
    torch.manual_seed(0)
    qkv = torch.randn(3, n, 3, heads, d).bfloat16()
    ours = packed_attention.only("bmm")(qkv)
    assert ours.dtype == torch.bfloat16 and ours.shape == (3, n, heads, d)
    assert error_ratio(ours, eager(qkv), packed_attention.only("reference")(qkv.double())) <= 2
    assert torch.equal(ours, packed_attention(qkv))


@torch.no_grad()
def test_norms_and_turns_come_first():
    torch.manual_seed(0)
    qkv, gains = torch.randn(2, 80, 3, 4, 16).bfloat16(), torch.rand(2, 16).bfloat16()
    angle = torch.rand(80, 16)
    before = {"q_gain": gains[0], "k_gain": gains[1], "cos": angle.cos(), "sin": angle.sin(), "scale": 0.5}
    exact = packed_attention.only("reference")(qkv.double(), **before)
    for backend in ("bmm", "sdpa"):
        torch.testing.assert_close(packed_attention.only(backend)(qkv, **before).double(), exact, rtol=0.05, atol=0.02)


def test_refusals():
    qkv = torch.randn(1, 64, 3, 2, 8).bfloat16()

    def said(*args, **kwargs):
        return packed_attention.explain(*args, **kwargs)["bmm"]

    assert said(qkv) == "chosen"
    assert said(qkv.float()) == "refuses: it is for bfloat16 on a CPU"
    assert said(qkv, Causal()) == "refuses: it has no Causal"
    assert said(qkv[:, :63]) == "refuses: 63 positions; it is for 64 to 2048"
    assert said(qkv.requires_grad_()) == "refuses: a gradient is needed, and all scores would be kept"
    with torch.no_grad():
        assert said(qkv) == "chosen"


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own forward mode
def test_a_tangent_is_for_others():
    qkv = torch.randn(1, 64, 3, 2, 8).bfloat16()
    with sdpa_kernel(SDPBackend.MATH):
        ours = torch.func.jvp(packed_attention, (qkv,), (qkv,))[1]
        theirs = torch.func.jvp(packed_attention.only("reference"), (qkv.double(),), (qkv.double(),))[1]
    torch.testing.assert_close(ours.double(), theirs, rtol=0.1, atol=0.05)


@torch.no_grad()
def test_a_compiled_graph_has_sdpa_in_its_place():
    qkv = torch.randn(1, 64, 3, 2, 8).bfloat16()
    compiled = torch.compile(packed_attention, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(qkv), packed_attention.only("sdpa")(qkv))

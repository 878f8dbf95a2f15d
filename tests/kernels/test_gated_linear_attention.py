"""Gated linear attention: chunks against the recurrence token by token in float64, and its special cases."""

import pytest
import torch

from gen.kernels.gated_linear_attention import gated_linear_attention, pytorch
from gen.kernels.ssd import ssd
from tests.kernels import eager
from tests.kernels.compare import holds


def arguments(batch=2, length=21, heads=2, keys=3, values=5, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    q, k, gate = (torch.randn(batch, length, heads, keys, generator=g, dtype=torch.float64) for _ in range(3))
    v = torch.randn(batch, length, heads, values, generator=g, dtype=torch.float64)
    return [x.to(dtype) for x in (q, k, v, torch.nn.functional.logsigmoid(gate))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_chunks(dtype, monkeypatch):
    """Less than a chunk, one, and some with a ragged last one."""
    monkeypatch.setattr(pytorch, "CHUNK", 8)
    for length in (5, 8, 21):
        holds(gated_linear_attention, "chunked", eager.gated_linear_attention, arguments(length=length, dtype=dtype))


def test_it_forgets_without_overflow():
    """A gate of exp(-300) a token: what later tokens would weigh is never computed."""
    q, k, v, g = arguments(length=40)
    leaf = v.clone().requires_grad_()
    y = gated_linear_attention(q, k, leaf, g - 300)
    torch.testing.assert_close(y, gated_linear_attention.only("reference")(q, k, v, g - 300), rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(y.sum(), leaf)[0].isfinite().all()


def test_all_derivatives(monkeypatch):
    monkeypatch.setattr(pytorch, "CHUNK", 2)
    inputs = [x.requires_grad_() for x in arguments(1, 3, 1, 2, 2, torch.float64)]
    for backend in ("chunked", "reference"):
        assert torch.autograd.gradcheck(gated_linear_attention.only(backend), inputs)
        assert torch.autograd.gradgradcheck(gated_linear_attention.only(backend), inputs)


def test_one_decay_for_all_of_a_head_is_mamba_2s_scan():
    q, k, v, g = arguments(dtype=torch.float64)
    g = g[..., :1].expand_as(g)
    expected = torch.cat(
        [ssd(v[:, :, i : i + 1], -g[:, :, i, :1], -torch.ones(1).double(), k[:, :, i : i + 1] / -g[:, :, i : i + 1, :1],
             q[:, :, i : i + 1]) for i in range(2)], 2
    )  # fmt: skip
    torch.testing.assert_close(gated_linear_attention(q, k, v, g, scale=1.0), expected, rtol=1e-12, atol=1e-12)


def test_shapes_that_do_not_fit_are_refused():
    q, k, v, g = arguments()
    with pytest.raises(ValueError, match=r"gated_linear_attention: g is"):
        gated_linear_attention(q, k, v, g[..., :1])

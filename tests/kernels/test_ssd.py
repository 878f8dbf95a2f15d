"""Mamba-2's scan: every back end that runs here against the scan token by token in float64."""

import pytest
import torch

from gen.kernels.dispatch import explain
from gen.kernels.selective_scan import selective_scan
from gen.kernels.ssd import pytorch, ssd
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.scans import heads, scan

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])


@DTYPES
def test_masked_attention(dtype):
    holds(ssd, "quadratic", eager.ssd, heads(dtype=dtype))


@DTYPES
def test_chunks(dtype, monkeypatch):
    """Less than a chunk, one, and some with a ragged last one."""
    monkeypatch.setattr(pytorch, "CHUNK", 8)
    for length in (5, 8, 21):
        holds(ssd, "chunked", eager.ssd, heads(length=length, dtype=dtype))


def test_it_forgets_without_overflow(monkeypatch):
    """A decay of exp(-300) per token: what later tokens would weigh is never computed."""
    monkeypatch.setattr(pytorch, "CHUNK", 8)
    x, delta, _, B, C = heads()
    for backend in ("quadratic", "chunked"):
        leaf = x.clone().requires_grad_()
        y = ssd.only(backend)(leaf, delta + 1, torch.full((4,), -300.0), B, C)
        torch.testing.assert_close(y, ssd.only("reference")(x, delta + 1, torch.full((4,), -300.0), B, C))
        assert torch.autograd.grad(y.sum(), leaf)[0].isfinite().all()


@pytest.mark.parametrize("backend", ["quadratic", "chunked", "reference"])
def test_all_derivatives(backend, monkeypatch):
    monkeypatch.setattr(pytorch, "CHUNK", 2)
    inputs = [v.requires_grad_() for v in heads(1, 3, 2, 1, 1, 2, torch.float64)]
    assert torch.autograd.gradcheck(ssd.only(backend), inputs)
    assert torch.autograd.gradgradcheck(ssd.only(backend), inputs)


def test_it_is_a_selective_scan_of_heads_of_one_channel():
    u, delta, A, B, C = scan(dtype=torch.float64)
    A = A[:, :1]
    y = ssd(u[..., None], delta, A[:, 0], B[:, :, None], C[:, :, None])[..., 0]
    torch.testing.assert_close(y, selective_scan(u, delta, A.expand(-1, 3).contiguous(), B, C))


@pytest.mark.slow
def test_a_compiled_graph_stays_whole():
    inputs = heads(length=4)
    compiled = torch.compile(ssd, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), ssd(*inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("backend", "length"), [("quadratic", 21), ("chunked", 150)])
def test_no_sample_at_all(backend, length):
    inputs = [v.requires_grad_() for v in heads(0, length)]
    y = ssd.only(backend)(*inputs)
    assert y.shape == inputs[0].shape
    slopes = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    for slope, second in zip(slopes, torch.autograd.grad(sum(v.sum() for v in slopes), inputs), strict=True):
        assert slope.shape == second.shape and not slope.any() and not second.any()


def test_explain(capsys):
    explain(ssd, *heads(1, 300, 1, 1, 1, 1))
    assert capsys.readouterr().out.splitlines()[3:5] == [
        "  quadratic       refuses: 300 tokens; beyond 128 chunks are less work",
        "  chunked         chosen",
    ]


def test_wrong_shapes():
    x, delta, A, B, C = heads()
    with pytest.raises(ValueError, match=r"ssd: A is \[3\]; it must be \[4\]"):
        ssd(x, delta, A[1:], B, C)
    with pytest.raises(ValueError, match="4 heads do not divide into 3 groups"):
        ssd(x, delta, A, *(v[:, :, :1].expand(-1, -1, 3, -1) for v in (B, C)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype):
    draws = [[v.cuda() for v in heads(2, 200, 4, 64, 2, 64, dtype)] for _ in range(2)]
    holds(ssd, "triton", eager.ssd, *draws)
    holds(ssd, "triton_chunked", eager.ssd, [v.cuda() for v in heads(1, 600, 4, 64, 2, 64, dtype)])

"""State spaces: every backend that runs here against token-by-token scans in float64, and the layers' own versions."""

import pytest
import torch

from gen.kernels.backends import selective_scan_torch, ssd_torch
from gen.kernels.dispatch import Refused, explain
from gen.kernels.state_space import s4d_kernel, selective_scan, ssd
from gen.models.layers.ssm import s4d as s4d_layer
from gen.models.layers.ssm import selective_scan as scan_layer
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.scans import heads, modes, scan


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 200])
def test_s4d_kernel_from_two_factors(dtype, length):
    holds(s4d_kernel, "factored", eager.s4d_kernel, *[(*modes(dtype=dtype), length) for _ in range(4)])


def test_s4d_kernel_far_out_keeps_its_digits():
    """In float32 the phase of a mode that turned a thousand times is known to a few digits; here it is not rounded."""
    A, C, dt = modes(8, 32)
    truth = s4d_kernel.only("reference")(A.to(torch.complex128), C.to(torch.complex128), dt.double(), 4096)
    ours, plain = (
        float((f(A, C, dt, 4096).double() - truth).norm() / truth.norm()) for f in (s4d_kernel, eager.s4d_kernel)
    )
    assert ours < 1e-6
    assert ours < plain / 5


def test_s4d_kernel_is_the_layers():
    A, C, dt = (v.to(torch.complex128 if v.is_complex() else torch.float64) for v in modes())
    torch.testing.assert_close(s4d_kernel(A, C, dt, 50), s4d_layer.s4d_kernel(A, C, dt, 50))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ssd_as_masked_attention(dtype):
    holds(ssd, "quadratic", eager.ssd, heads(dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [5, 8, 21])
def test_ssd_in_chunks(dtype, length, monkeypatch):
    monkeypatch.setattr(ssd_torch, "CHUNK", 8)
    holds(ssd, "chunked", eager.ssd, heads(length=length, dtype=dtype))


def test_ssd_forgets_without_overflow(monkeypatch):
    """A decay of exp(-300) per token: what later tokens would weigh is never made."""
    monkeypatch.setattr(ssd_torch, "CHUNK", 8)
    x, delta, _, B, C = heads()
    for backend in ("quadratic", "chunked"):
        leaf = x.clone().requires_grad_()
        y = ssd.only(backend)(leaf, delta + 1, torch.full((4,), -300.0), B, C)
        torch.testing.assert_close(y, ssd.only("reference")(x, delta + 1, torch.full((4,), -300.0), B, C))
        assert torch.autograd.grad(y.sum(), leaf)[0].isfinite().all()


@pytest.mark.parametrize("backend", ["quadratic", "chunked", "reference"])
def test_all_derivatives_of_ssd(backend, monkeypatch):
    monkeypatch.setattr(ssd_torch, "CHUNK", 2)
    inputs = [v.requires_grad_() for v in heads(1, 3, 2, 2, 1, 2, torch.float64)]
    assert torch.autograd.gradcheck(ssd.only(backend), inputs)
    assert torch.autograd.gradgradcheck(ssd.only(backend), inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 2, 21])
def test_selective_scan(dtype, length):
    # Of bfloat16's few tokens a gradient may be a single number: several draws.
    draws = [scan(length=length, dtype=dtype) for _ in range(3)]
    holds(selective_scan, "torch", eager.selective_scan, *draws)


def test_selective_scan_is_the_layers():
    inputs = scan(dtype=torch.float64)
    torch.testing.assert_close(selective_scan(*inputs), scan_layer.selective_scan(*inputs))


def test_ssd_is_a_selective_scan_of_heads_of_one_channel():
    u, delta, A, B, C = scan(dtype=torch.float64)
    A = A[:, :1]
    y = ssd(u[..., None], delta, A[:, 0], B[:, :, None], C[:, :, None])[..., 0]
    torch.testing.assert_close(y, selective_scan(u, delta, A.expand(-1, 3).contiguous(), B, C))


def test_the_op_is_registered_whole():
    torch.library.opcheck(selective_scan_torch._scan, [v.requires_grad_() for v in scan(1, 5, 2, 2)])


CALLS = [
    pytest.param(selective_scan, lambda: scan(length=4), id="selective_scan"),
    pytest.param(ssd, lambda: heads(length=4), id="ssd", marks=pytest.mark.slow),
    pytest.param(s4d_kernel, lambda: (*modes(), 20), id="s4d_kernel", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("op", "draw"), CALLS)
def test_a_compiled_graph_stays_whole(op, draw):
    inputs = draw()
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), op(*inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own forward mode
def test_refusals(capsys):
    explain(ssd, *heads(1, 300, 1, 1, 1, 1))
    assert capsys.readouterr().out.splitlines()[1:3] == [
        "  quadratic  refuses: 300 tokens; beyond 128 chunks are less work",
        "  chunked    chosen",
    ]
    with pytest.raises(Refused, match="selective_scan: triton refuses: "):
        selective_scan.only("triton")(*scan())
    u, *rest = scan()
    with pytest.raises(Refused, match=r"torch refuses: only plain PyTorch passes torch.func"):
        torch.func.jvp(lambda u: selective_scan.only("torch")(u, *rest), (u,), (u,))
    tangent = torch.func.jvp(lambda u: selective_scan(u, *rest), (u,), (u,))[1]
    torch.testing.assert_close(tangent, selective_scan(u, *rest))  # linear in u


def test_wrong_shapes():
    u, delta, A, B, C = scan()
    with pytest.raises(ValueError, match=r"selective_scan: delta is \[2, 20, 6\]; it must be \[2, 21, 6\]"):
        selective_scan(u, delta[:, 1:], A, B, C)
    x, delta, A, B, C = heads()
    with pytest.raises(ValueError, match=r"ssd: A is \[3\]; it must be \[4\]"):
        ssd(x, delta, A[1:], B, C)
    with pytest.raises(ValueError, match="4 heads do not divide into 3 groups"):
        ssd(x, delta, A, *(v[:, :, :1].expand(-1, -1, 3, -1) for v in (B, C)))
    A, C, dt = modes()
    with pytest.raises(ValueError, match=r"A, C, dt are \[4, 6\], \[4, 6\], \[3\]"):
        s4d_kernel(A, C, dt[1:], 5)
    with pytest.raises(ValueError, match=r"torch.float32 and torch.complex64; they must be complex"):
        s4d_kernel(A.real, C, dt, 5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype):
    draws = [[v.cuda() for v in scan(2, 100, 200, 16, dtype)] for _ in range(3)]
    holds(selective_scan, "triton", eager.selective_scan, *draws)

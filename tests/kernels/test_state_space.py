"""State spaces: every backend that runs here against token-by-token scans in float64."""

import pytest
import torch

from gen.kernels.dispatch import Refused, explain
from gen.kernels.s4d import s4d_kernel
from gen.kernels.selective_scan import chunked as selective_scan_torch
from gen.kernels.selective_scan import pytorch as selective_scan_whole
from gen.kernels.selective_scan import selective_scan
from gen.kernels.ssd import pytorch as ssd_torch
from gen.kernels.ssd import ssd
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.scans import heads, modes, scan


@pytest.mark.parametrize("ways", [(), (2,)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 200])
def test_s4d_kernel(dtype, length, ways):
    draws = [(*modes(dtype=dtype, ways=ways), length) for _ in range(4)]
    holds(s4d_kernel, "direct", eager.s4d_kernel, *draws)
    holds(s4d_kernel, "factored", eager.s4d_kernel, *draws)


def test_s4d_kernel_far_out_keeps_its_digits():
    """In float32 the phase of a mode that turned a thousand times is known to a few digits; here it is not rounded."""
    A, C, dt = modes(8, 32)
    truth = s4d_kernel.only("reference")(A.to(torch.complex128), C.to(torch.complex128), dt.double(), 4096)
    ours, plain = (
        float((f(A, C, dt, 4096).double() - truth).norm() / truth.norm()) for f in (s4d_kernel, eager.s4d_kernel)
    )
    assert ours < 1e-6
    assert ours < plain / 5


@pytest.mark.parametrize("backend", ["direct", "factored", "reference"])
def test_all_derivatives_of_s4d(backend):
    A, C, dt = (v.requires_grad_() for v in modes(2, 2, torch.float64, (2,)))
    assert torch.autograd.gradcheck(lambda *v: s4d_kernel.only(backend)(*v, 5), (A, C, dt))
    assert torch.autograd.gradgradcheck(lambda *v: s4d_kernel.only(backend)(*v, 5), (A, C, dt))


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


WAYS = pytest.mark.parametrize(("ordered", "reverse"), [(False, False), (False, True), (True, False), (True, True)])


def ways(ordered, reverse, length=21):
    return torch.randperm(length) if ordered else None, reverse


@WAYS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["chunked", "torch"])
def test_selective_scan(backend, dtype, ordered, reverse, monkeypatch):
    monkeypatch.setattr(selective_scan_torch, "AT_ONCE", 6 * 3 * 4)  # the last of six chunks has one token
    monkeypatch.setattr(selective_scan_whole, "AT_ONCE", 6 * 3 * 21)  # one row at a time
    draws = [(*scan(dtype=dtype), *ways(ordered, reverse)) for _ in range(2)]
    holds(selective_scan, backend, eager.selective_scan, *draws)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("backend", ["chunked", "torch"])
def test_selective_scan_of_few_tokens(backend, length, dtype):
    # Of bfloat16's few tokens a gradient may be a single number: several draws.
    holds(selective_scan, backend, eager.selective_scan, *[scan(length=length, dtype=dtype) for _ in range(3)])


def test_states_of_many_numbers_are_summed_by_products(monkeypatch):
    monkeypatch.setattr(selective_scan_torch, "SMALL", 0)
    holds(selective_scan, "chunked", eager.selective_scan, scan())


@WAYS
def test_an_order_is_a_way_to_read(ordered, reverse):
    """Tokens laid out in the order of the scan and read as they lie: the same numbers, in other places."""
    u, delta, A, B, C = scan()
    order, _ = ways(ordered, reverse)
    at = torch.arange(21) if order is None else order
    at = at.flip(0) if reverse else at
    laid = selective_scan(u[:, at], delta[:, at], A, B[:, at], C[:, at])
    torch.testing.assert_close(selective_scan(u, delta, A, B, C, order, reverse)[:, at], laid, rtol=1e-6, atol=1e-6)


def test_selective_scan_by_hand():
    """Two tokens, one channel, one state: h1 = d1 B1 u1, h2 = exp(d2 A) h1 + d2 B2 u2."""
    u, delta, B, C = (torch.tensor([[[v], [w]]]) for v, w in ((1.0, 2.0), (0.5, 0.25), (3.0, 4.0), (1.0, 10.0)))
    h1 = 0.5 * 3 * 1
    h2 = torch.tensor(-0.25 * 2).exp() * h1 + 0.25 * 4 * 2
    y = selective_scan(u, delta, torch.tensor([[-2.0]]), B, C)
    torch.testing.assert_close(y.flatten(), torch.stack([torch.tensor(h1), 10 * h2]))


@pytest.mark.parametrize("backend", ["chunked", "torch"])
def test_long_and_steep_sequences_stay_finite(backend):
    """Sums of delta A beyond the range of exp, in float32: nothing is ever exponentiated upwards."""
    u, delta, A, B, C = scan(1, 300, 4, 2)
    y = selective_scan.only(backend)(u, 1000 * delta, A, B, C)
    assert y.isfinite().all()
    torch.testing.assert_close(y, selective_scan.only("reference")(u, 1000 * delta, A, B, C), rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own forward mode
@pytest.mark.parametrize("backend", ["chunked", "torch"])
def test_all_derivatives_of_selective_scan(backend):
    inputs = [v.requires_grad_() for v in scan(2, 3, 2, 2, torch.float64)]
    op, order = selective_scan.only(backend), torch.tensor([2, 0, 1])
    assert torch.autograd.gradcheck(lambda *v: op(*v, order, True), inputs, check_forward_ad=backend == "torch")
    assert torch.autograd.gradgradcheck(lambda *v: op(*v, order, True), inputs)


def test_ssd_is_a_selective_scan_of_heads_of_one_channel():
    u, delta, A, B, C = scan(dtype=torch.float64)
    A = A[:, :1]
    y = ssd(u[..., None], delta, A[:, 0], B[:, :, None], C[:, :, None])[..., 0]
    torch.testing.assert_close(y, selective_scan(u, delta, A.expand(-1, 3).contiguous(), B, C))


def test_the_op_is_registered_whole():
    for order, reverse in ((None, False), (torch.tensor([1, 0, 3, 4, 2]), True)):
        inputs = [v.requires_grad_() for v in scan(1, 5, 2, 2)]
        torch.library.opcheck(selective_scan_torch._scan, (*inputs, order, reverse))


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


def test_a_compiled_graph_of_the_whole_scan_stays_whole():
    inputs, op = [v.requires_grad_() for v in scan(length=4, dtype=torch.float64)], selective_scan.only("torch")
    found = []
    for y in (torch.compile(op, backend="aot_eager", fullgraph=True)(*inputs), op(*inputs)):
        found.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        pytest.param(selective_scan.only("chunked"), scan(0), id="chunked"),
        pytest.param(selective_scan.only("torch"), scan(0), id="torch"),
        pytest.param(ssd.only("quadratic"), heads(0), id="quadratic"),
        pytest.param(ssd.only("chunked"), heads(0, 150), id="chunked"),
    ],
)
def test_no_sample_at_all(op, inputs):
    inputs = [v.clone().requires_grad_() for v in inputs]
    y = op(*inputs)
    assert y.shape == inputs[0].shape
    slopes = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    for slope, again in zip(slopes, torch.autograd.grad(sum(v.sum() for v in slopes), inputs), strict=True):
        assert slope.shape == again.shape and not slope.any() and not again.any()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own forward mode
def test_refusals(capsys):
    explain(ssd, *heads(1, 300, 1, 1, 1, 1))
    assert capsys.readouterr().out.splitlines()[3:5] == [
        "  quadratic       refuses: 300 tokens; beyond 128 chunks are less work",
        "  chunked         chosen",
    ]
    with pytest.raises(Refused, match="selective_scan: triton refuses: "):
        selective_scan.only("triton")(*scan())
    u, *rest = scan()
    with pytest.raises(Refused, match=r"chunked refuses: only plain PyTorch passes torch.func"):
        torch.func.jvp(lambda u: selective_scan.only("chunked")(u, *rest), (u,), (u,))
    tangent = torch.func.jvp(lambda u: selective_scan(u, *rest), (u,), (u,))[1]
    torch.testing.assert_close(tangent, selective_scan(u, *rest))  # linear in u


def test_wrong_shapes():
    u, delta, A, B, C = scan()
    with pytest.raises(ValueError, match=r"selective_scan: delta is \[2, 20, 6\]; it must be \[2, 21, 6\]"):
        selective_scan(u, delta[:, 1:], A, B, C)
    with pytest.raises(ValueError, match=r"selective_scan: order is \[20\]; it must be \[21\]"):
        selective_scan(u, delta, A, B, C, torch.arange(20))
    with pytest.raises(ValueError, match=r"order is torch.int32; it must be torch.int64"):
        selective_scan(u, delta, A, B, C, torch.arange(21).int())
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
@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_selective_scan_on_a_gpu(dtype, ordered, reverse):
    order = torch.randperm(100).cuda() if ordered else None
    draws = [(*(v.cuda() for v in scan(2, 100, 200, 16, dtype)), order, reverse) for _ in range(3)]
    holds(selective_scan, "triton", eager.selective_scan, *draws)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ssd_on_a_gpu(dtype):
    draws = [[v.cuda() for v in heads(2, 200, 4, 64, 2, 64, dtype)] for _ in range(2)]
    holds(ssd, "triton", eager.ssd, *draws)
    holds(ssd, "triton_chunked", eager.ssd, [v.cuda() for v in heads(1, 600, 4, 64, 2, 64, dtype)])


@pytest.mark.gpu
@pytest.mark.parametrize("ways", [(), (2,)])
def test_s4d_on_a_gpu(ways):
    holds(s4d_kernel, "triton", eager.s4d_kernel, (*(v.cuda() for v in modes(64, 32, ways=ways)), 1000))

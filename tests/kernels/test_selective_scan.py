"""The selective scan: every back end that runs here against the scan token by token in float64."""

import pytest
import torch

from gen.kernels.dispatch import Refused
from gen.kernels.selective_scan import chunked, pytorch, selective_scan
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.scans import scan

BACKENDS = pytest.mark.parametrize("backend", ["chunked", "torch"])
WAYS = [(False, False), (False, True), (True, False), (True, True)]
ORDERS = pytest.mark.parametrize(("ordered", "reverse"), WAYS)


def way(ordered, reverse, length=21):
    return torch.randperm(length) if ordered else None, reverse


@BACKENDS
@ORDERS
def test_selective_scan(backend, ordered, reverse, monkeypatch):
    monkeypatch.setattr(chunked, "AT_ONCE", 6 * 3 * 4)  # the last of six chunks has one token
    monkeypatch.setattr(pytorch, "AT_ONCE", 6 * 3 * 21)  # one row at a time
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        draws = [(*scan(dtype=dtype), *way(ordered, reverse)) for _ in range(2)]
        holds(selective_scan, backend, eager.selective_scan, *draws)


@BACKENDS
@pytest.mark.parametrize(("dtype", "length"), [(torch.float32, 1), (torch.bfloat16, 1), (torch.float64, 2)])
def test_few_tokens(backend, length, dtype):
    # Of bfloat16's few tokens a gradient may be a single number: several draws.
    holds(selective_scan, backend, eager.selective_scan, *[scan(length=length, dtype=dtype) for _ in range(3)])


@pytest.mark.parametrize("backend", ["chunked", "torch", "reference"])
@pytest.mark.parametrize("ordered", [False, True])
def test_no_tokens(backend, ordered):
    u, delta, A, B, C = scan(length=0)
    u.requires_grad_()
    y = selective_scan.only(backend)(u, delta, A, B, C, torch.arange(0) if ordered else None)
    y.sum().backward()
    assert y.shape == u.shape == u.grad.shape


def test_states_of_many_numbers_are_summed_by_products(monkeypatch):
    monkeypatch.setattr(chunked, "SMALL", 0)
    holds(selective_scan, "chunked", eager.selective_scan, scan())


@ORDERS
def test_an_order_is_a_way_to_read(ordered, reverse):
    """Tokens laid out in the order of the scan and read as they lie: the same numbers, at other positions."""
    u, delta, A, B, C = scan()
    order, _ = way(ordered, reverse)
    at = torch.arange(21) if order is None else order
    at = at.flip(0) if reverse else at
    laid = selective_scan(u[:, at], delta[:, at], A, B[:, at], C[:, at])
    torch.testing.assert_close(selective_scan(u, delta, A, B, C, order, reverse)[:, at], laid, rtol=1e-6, atol=1e-6)


def test_by_hand():
    """Two tokens, one channel, one state: h1 = d1 B1 u1, h2 = exp(d2 A) h1 + d2 B2 u2."""
    u, delta, B, C = (torch.tensor([[[v], [w]]]) for v, w in ((1.0, 2.0), (0.5, 0.25), (3.0, 4.0), (1.0, 10.0)))
    h1 = 0.5 * 3 * 1
    h2 = torch.tensor(-0.25 * 2).exp() * h1 + 0.25 * 4 * 2
    y = selective_scan(u, delta, torch.tensor([[-2.0]]), B, C)
    torch.testing.assert_close(y.flatten(), torch.stack([torch.tensor(h1), 10 * h2]))


@BACKENDS
def test_long_and_steep_sequences_stay_finite(backend):
    """Sums of delta A beyond the range of exp, in float32: nothing is ever exponentiated upwards."""
    u, delta, A, B, C = scan(1, 300, 4, 2)
    y = selective_scan.only(backend)(u, 1000 * delta, A, B, C)
    assert y.isfinite().all()
    torch.testing.assert_close(y, selective_scan.only("reference")(u, 1000 * delta, A, B, C), rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own forward mode
@BACKENDS
def test_all_derivatives(backend):
    inputs = [v.requires_grad_() for v in scan(2, 3, 1, 2, torch.float64)]
    op, order = selective_scan.only(backend), torch.tensor([2, 0, 1])
    assert torch.autograd.gradcheck(lambda *v: op(*v, order, True), inputs, check_forward_ad=backend == "torch")
    assert torch.autograd.gradgradcheck(lambda *v: op(*v, order, True), inputs)


def test_the_op_is_registered_whole():
    for order, reverse in ((None, False), (torch.tensor([1, 0, 3, 4, 2]), True)):
        inputs = [v.requires_grad_() for v in scan(1, 5, 2, 2)]
        torch.library.opcheck(chunked._scan, (*inputs, order, reverse))


@pytest.mark.parametrize("op", [selective_scan, selective_scan.only("torch")], ids=["chosen", "torch"])
def test_a_compiled_graph_stays_whole(op):
    inputs = [v.requires_grad_() for v in scan(length=4, dtype=torch.float64)]
    found = []
    for y in (torch.compile(op, backend="aot_eager", fullgraph=True)(*inputs), op(*inputs)):
        found.append((y, *torch.autograd.grad(y.square().sum(), inputs)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@BACKENDS
def test_no_sample_at_all(backend):
    inputs = [v.requires_grad_() for v in scan(0)]
    y = selective_scan.only(backend)(*inputs)
    assert y.shape == inputs[0].shape
    slopes = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    for slope, second in zip(slopes, torch.autograd.grad(sum(v.sum() for v in slopes), inputs), strict=True):
        assert slope.shape == second.shape and not slope.any() and not second.any()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # PyTorch's own forward mode
def test_refusals():
    u, *rest = scan()
    with pytest.raises(Refused, match="selective_scan: triton refuses: "):
        selective_scan.only("triton")(u, *rest)
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


@pytest.mark.gpu
@ORDERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(dtype, ordered, reverse):
    order = torch.randperm(100).cuda() if ordered else None
    draws = [(*(v.cuda() for v in scan(2, 100, 200, 16, dtype)), order, reverse) for _ in range(3)]
    holds(selective_scan, "triton", eager.selective_scan, *draws)

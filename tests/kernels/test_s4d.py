"""S4D's kernel: every back end that runs here against the formula in float64."""

import pytest
import torch

from gen.kernels.s4d import s4d_kernel
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.scans import modes


@pytest.mark.parametrize(
    ("dtype", "length", "ways"),
    [
        (torch.float64, 200, ()),
        (torch.float32, 200, (2,)),
        (torch.float32, 64, ()),
        (torch.float64, 7, (2,)),
        (torch.float32, 1, ()),
    ],
)
def test_s4d_kernel(dtype, length, ways):
    draws = [(*modes(dtype=dtype, ways=ways), length) for _ in range(4)]
    holds(s4d_kernel, "direct", eager.s4d_kernel, *draws)
    holds(s4d_kernel, "factored", eager.s4d_kernel, *draws)


def test_far_out_it_keeps_its_digits():
    """In float32 the phase of a mode that turned a thousand times is known to a few digits; here it is not rounded."""
    A, C, dt = modes(8, 32)
    truth = s4d_kernel.only("reference")(A.to(torch.complex128), C.to(torch.complex128), dt.double(), 4096)
    ours, plain = (
        float((f(A, C, dt, 4096).double() - truth).norm() / truth.norm()) for f in (s4d_kernel, eager.s4d_kernel)
    )
    assert ours < 1e-6
    assert ours < plain / 5


@pytest.mark.parametrize("backend", ["direct", "factored", "reference"])
def test_all_derivatives(backend):
    A, C, dt = (v.requires_grad_() for v in modes(1, 2, torch.float64, (2,)))
    assert torch.autograd.gradcheck(lambda *v: s4d_kernel.only(backend)(*v, 5), (A, C, dt))
    assert torch.autograd.gradgradcheck(lambda *v: s4d_kernel.only(backend)(*v, 5), (A, C, dt))


@pytest.mark.slow
def test_a_compiled_graph_stays_whole():
    compiled, inputs = torch.compile(s4d_kernel, backend="aot_eager", fullgraph=True), (*modes(), 20)
    torch.testing.assert_close(compiled(*inputs), s4d_kernel(*inputs), rtol=1e-6, atol=1e-6)


def test_wrong_arguments():
    A, C, dt = modes()
    with pytest.raises(ValueError, match=r"A, C, dt are \[4, 6\], \[4, 6\], \[3\]"):
        s4d_kernel(A, C, dt[1:], 5)
    with pytest.raises(ValueError, match=r"torch.float32 and torch.complex64; they must be complex"):
        s4d_kernel(A.real, C, dt, 5)


@pytest.mark.gpu
@pytest.mark.parametrize("ways", [(), (2,)])
def test_on_a_gpu(ways):
    holds(s4d_kernel, "triton", eager.s4d_kernel, (*(v.cuda() for v in modes(64, 32, ways=ways)), 1000))

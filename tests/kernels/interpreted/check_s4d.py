"""Our kernels of S4D's Vandermonde product, interpreted."""

import pytest
import torch

from gen.kernels.dispatch import Refused
from gen.kernels.s4d import s4d_kernel
from gen.kernels.s4d import triton_launch as s4d_triton
from tests.kernels import eager
from tests.kernels.compare import holds
from tests.kernels.scans import modes


@pytest.mark.parametrize(("length", "ways"), [(37, ()), (37, (2,)), (1, (3,))])
def test_s4d_kernel(length, ways):
    holds(s4d_kernel, "triton", eager.s4d_kernel, *[(*modes(2, 6, ways=ways), length) for _ in range(2)])


def test_far_out_it_keeps_its_digits():
    """In float32 the phase of a mode that turned a thousand times is known to a few digits; here it is not rounded."""
    A, C, dt = modes(2, 8)
    A = torch.complex(A.real, 1000 * A.imag + 1000)  # none that does not turn
    truth = s4d_kernel.only("reference")(A.to(torch.complex128), C.to(torch.complex128), dt.double(), 40)
    ours = s4d_kernel.only("triton")(A, C, dt, 40)
    assert (ours - truth).norm() < 1e-6 * truth.norm()
    assert (eager.s4d_kernel(A, C, dt, 40) - truth).norm() > 1e-5 * truth.norm()


def test_the_op_is_registered_whole():
    drive = [torch.randn(1, 2, 3).requires_grad_() for _ in range(2)]
    step = [(-torch.rand(2, 3).double()).requires_grad_() for _ in range(2)]
    torch.library.opcheck(s4d_triton._product, (*drive, *step, 5))


def test_second_derivatives():
    A, C, dt = (v.requires_grad_() for v in modes(2, 3))
    found = []
    for backend in ("triton", "factored"):
        slopes = torch.autograd.grad(s4d_kernel.only(backend)(A, C, dt, 9).square().sum(), (C, dt), create_graph=True)
        found.append(torch.autograd.grad(sum(v.abs().square().sum() for v in slopes), (A, dt)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_refusals():
    with pytest.raises(Refused, match="5 kernels of the same states; up to 4 share their powers"):
        s4d_kernel.only("triton")(*modes(ways=(5,)), 9)
    with pytest.raises(Refused, match=r"no kernel for torch.float64"):
        s4d_kernel.only("triton")(*modes(dtype=torch.float64), 9)

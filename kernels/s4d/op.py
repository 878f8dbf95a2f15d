"""The convolution kernel of a diagonal state space (S4D)."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.dispatch import Backend, op
from gen.kernels.s4d import pytorch, reference, triton_launch
from gen.kernels.s4d.call import S4DKernelCall

__all__ = ["s4d_kernel"]


@op(
    Backend("triton", triton_launch.run, triton_launch.incompatible_reason),
    Backend("direct", pytorch.direct, pytorch.direct_reason),
    Backend("factored", pytorch.factored, pytorch.incompatible_reason),
    Backend("reference", reference.s4d_kernel),
)
def s4d_kernel(A: Tensor, C: Tensor, dt: Tensor, length: int) -> S4DKernelCall:
    """Compute the impulse response K_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(l dt A_n), with B = 1.

    (S4D, Gu et al. 2022, arXiv 2206.11893, equation 6: zero-order hold.)

    Args:
        A: complex [H, N/2], one of each conjugate pair, Re A < 0.
        C: complex [H, N/2], or [W, H, N/2] for W kernels of the same states.
        dt: step sizes [H].
        length: of the kernel.

    Returns:
        K [H, length], or [W, H, length].

    Raises:
        ValueError: for other shapes, and for real A or C.
    """
    if A.ndim != 2 or C.shape[-2:] != A.shape or C.ndim > 3 or dt.ndim != 1 or dt.shape[0] != A.shape[0]:
        given = ", ".join(str(list(v.shape)) for v in (A, C, dt))
        raise ValueError(f"s4d_kernel: A, C, dt are {given}; they must be [H, N/2], [(W,) H, N/2] and [H]")
    if not (A.is_complex() and C.is_complex()):
        raise ValueError(f"s4d_kernel: A and C are {A.dtype} and {C.dtype}; they must be complex")
    return S4DKernelCall(A, C, dt, length)

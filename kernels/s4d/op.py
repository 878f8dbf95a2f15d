"""The convolution kernel of a diagonal state space (S4D)."""

from __future__ import annotations

from torch import Tensor

from gen.kernels.dispatch import Backend, Op
from gen.kernels.s4d import pytorch, reference, triton_launch

__all__ = ["s4d_kernel"]


def _s4d_kernel(A: Tensor, C: Tensor, dt: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """K [H, length], the answer to an impulse: K_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(l dt A_n).

    A: complex [H, N/2], one of each conjugate pair, Re A < 0; B is 1. C: complex [H, N/2], or [W, H, N/2] for W kernels
    of the same states, K [W, H, length]. dt: [H]. (S4D, Gu et al. 2022, arXiv 2206.11893, equation 6: zero-order hold.)
    """
    if A.ndim != 2 or C.shape[-2:] != A.shape or C.ndim > 3 or dt.ndim != 1 or dt.shape[0] != A.shape[0]:
        given = ", ".join(str(list(v.shape)) for v in (A, C, dt))
        raise ValueError(f"s4d_kernel: A, C, dt are {given}; they must be [H, N/2], [(W,) H, N/2] and [H]")
    if not (A.is_complex() and C.is_complex()):
        raise ValueError(f"s4d_kernel: A and C are {A.dtype} and {C.dtype}; they must be complex")
    return A, C, dt, length


s4d_kernel = Op(
    "s4d_kernel",
    _s4d_kernel,
    (
        Backend("triton", triton_launch.refuses, triton_launch.run),
        Backend("direct", pytorch.direct_refuses, pytorch.direct),
        Backend("factored", pytorch.factored_refuses, pytorch.factored),
        Backend("reference", pytorch.anything, reference.s4d_kernel),
    ),
)

"""The complete arguments of s4d_kernel, which every back end is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["S4DKernelCall"]


class S4DKernelCall(NamedTuple):
    """K_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(l dt A_n).

    Attributes:
        A: complex [H, N/2].
        C: complex [H, N/2], or [W, H, N/2] for W kernels of the same states.
        dt: [H].
        length: of the kernel.
    """

    A: Tensor
    C: Tensor
    dt: Tensor
    length: int

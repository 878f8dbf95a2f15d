"""The convolution with a kernel as long as the sequence, one shift after the other.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["long_convolution"]


def long_convolution(u: Tensor, K: Tensor) -> Tensor:
    """y_t = sum over s of K_s u_(t-s), one s after the other."""
    length, wide, y = u.shape[1], u.double(), torch.zeros_like(u, dtype=torch.float64)
    for s, tap in enumerate(K.double().unbind(1)):
        by = s if s < length else s - 2 * length  # the second half looks ahead; the place between is nobody's
        if by != -length:
            y = y + tap * pad(wide, (0, 0, by, -by))
    return y.to(u.dtype)

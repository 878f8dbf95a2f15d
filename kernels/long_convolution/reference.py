"""The convolution with a kernel as long as the sequence, one shift after the other.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from gen.kernels.long_convolution.call import LongConvolutionCall

__all__ = ["long_convolution"]


def long_convolution(call: LongConvolutionCall) -> Tensor:
    """Return y_t = sum over s of K_s u_(t-s).

    Args:
        call: the complete arguments.
    """
    u, K = call
    length, wide, y = u.shape[1], u.double(), torch.zeros_like(u, dtype=torch.float64)
    for s, tap in enumerate(K.double().unbind(1)):
        by = s if s < length else s - 2 * length  # the second half looks ahead; the number between is unused
        if by != -length:
            y = y + tap * pad(wide, (0, 0, by, -by))
    return y.to(u.dtype)

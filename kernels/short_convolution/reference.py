"""The convolution with a few taps, one tap after the other.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the inputs' wider dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from gen.kernels.short_convolution.call import ShortConvolutionCall

__all__ = ["short_convolution"]


def short_convolution(call: ShortConvolutionCall) -> Tensor:
    """Return bias + sum over k of weight_k u_(the token taps - 1 - k visits before).

    Args:
        call: the complete arguments.
    """
    u, weight, bias, order, reverse = call
    visits = torch.arange(u.shape[1], device=u.device) if order is None else order
    visits = visits.flip(0) if reverse else visits
    before = pad(u.double()[:, visits], (0, 0, weight.shape[1] - 1, 0))
    y = torch.zeros_like(u, dtype=torch.float64) + bias.double()
    for k, tap in enumerate(weight.double().unbind(1)):
        y = y + tap * before[:, k : k + u.shape[1]]
    return y[:, visits.argsort()].to(torch.promote_types(u.dtype, weight.dtype))

"""The linear recurrence, one step at a time.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has b's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gen.kernels.linear_scan.call import LinearScanCall

__all__ = ["linear_scan"]


def linear_scan(call: LinearScanCall) -> Tensor:
    """Return h_t = a_t h_(t-1) + b_t, or in reverse h_t = a_(t+1) h_(t+1) + b_t.

    Args:
        call: the complete arguments.
    """
    a, b, start, reverse = call
    kind = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float64)
    a_, b_ = a.to(kind), b.to(kind)
    if reverse:
        a_ = a_.roll(-1, 1)  # a_(t+1) at t, and the unused a_0 at the last
    h = torch.zeros_like(b_[:, 0]) if start is None else start.to(kind)
    states = []
    for t in reversed(range(b.shape[1])) if reverse else range(b.shape[1]):
        h = a_[:, t] * h + b_[:, t]
        states.append(h)
    return torch.stack(states[::-1] if reverse else states, 1).to(b.dtype)

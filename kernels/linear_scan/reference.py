"""The linear recurrence, one step at a time.

Slow, in float64 inside for any dtype, differentiable any number of times; the result has the input's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["linear_scan"]


def linear_scan(a: Tensor, b: Tensor, start: Tensor | None, reverse: bool) -> Tensor:
    """h_t = a_t h_(t-1) + b_t, one step at a time; from the last, h_t = a_(t+1) h_(t+1) + b_t."""
    kind = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float64)
    a_, b_ = a.to(kind), b.to(kind)
    if reverse:
        a_ = a_.roll(-1, 1)  # a_(t+1) at t, and a_0, which nothing comes to, at the last
    h = torch.zeros_like(b_[:, 0]) if start is None else start.to(kind)
    states = []
    for t in reversed(range(b.shape[1])) if reverse else range(b.shape[1]):
        h = a_[:, t] * h + b_[:, t]
        states.append(h)
    return torch.stack(states[::-1] if reverse else states, 1).to(b.dtype)
